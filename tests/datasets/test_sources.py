from __future__ import annotations

import hashlib
import http.server
import os
import pickle
import socket
import tarfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10

from sstune.datasets import SOURCES, Split, Splits, load
from sstune.schema import DigitsConfig, MnistConfig, RequestError, TorchvisionConfig


def contents(split: Split) -> set[bytes]:
    return {image.numpy().tobytes() for image in split.images}


CheckZeroEps = Callable[[Splits], None]


class TestRegistry:
    def test_a_name_is_taken_once(self) -> None:
        with pytest.raises(ValueError, match="'digits' is registered twice"):
            SOURCES.register("digits")(lambda config: pytest.fail("never called"))

    @pytest.mark.parametrize(("name", "hint"), [("cifar", "'cifar10'"), ("zzz", "the nearest known: ")])
    def test_an_unknown_name_is_met_with_the_known(self, name: str, hint: str) -> None:
        with pytest.raises(RequestError, match=f"dataset.name: .*{name!r}.*{hint}"):
            load(DigitsConfig(name=name))


class TestDigits:
    @pytest.fixture
    def splits(self) -> Splits:
        return load(DigitsConfig(name="digits"))

    def test_are_scikit_learns_in_17_levels(self, splits: Splits) -> None:
        levels = splits.train.images.unique().tolist()
        assert levels == [round(value * 255 / 16) for value in range(17)]
        assert (splits.channels, splits.image_size, splits.n_classes) == (1, (8, 8), 10)
        assert splits.classes == [str(digit) for digit in range(10)]

        bunch = load_digits()
        oracle = {
            bytes(round(value * 255 / 16) for value in row): target
            for row, target in zip(bunch.data.tolist(), bunch.target, strict=True)
        }
        for split in (splits.train, splits.val, splits.test):
            found = [oracle[image.numpy().tobytes()] for image in split.images]
            assert found == split.targets.tolist()

    def test_splits_share_no_image_and_are_stratified(self, splits: Splits) -> None:
        assert [len(splits.train), len(splits.val), len(splits.test)] == [1294, 144, 359]
        train, val, test = (contents(split) for split in (splits.train, splits.val, splits.test))
        assert len(train | val | test) == 1797
        whole = np.bincount(load_digits().target)
        assert np.abs(splits.test.targets.bincount().numpy() - whole * 0.2).max() < 1
        assert np.abs(splits.val.targets.bincount().numpy() - whole * 0.8 * 0.1).max() < 1.2

    def test_splits_never_change(self, splits: Splits) -> None:
        """Published figures rest on these images being the test images."""
        assert splits.test.digest[:16] == "5b4da5f40e11764f"
        assert splits.val.digest[:16] == "0b9f6b6be17672e4"

    def test_every_load_makes_the_same_splits(self, splits: Splits) -> None:
        other = load(DigitsConfig(name="digits"))
        assert [other.train.digest, other.val.digest, other.test.digest] == [
            splits.train.digest,
            splits.val.digest,
            splits.test.digest,
        ]

    def test_fractions_are_obeyed(self) -> None:
        splits = load(DigitsConfig(name="digits", test_fraction=0.5, val_fraction=0.3))
        assert [len(splits.train), len(splits.val), len(splits.test)] == [629, 270, 898]


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A local port that nothing listens on."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@pytest.fixture
def tiny_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed_port: int) -> Path:
    """An archive in CIFAR-10's format (5 x 20 + 20 noise images), known to torchvision, at a dead address."""
    rng = np.random.default_rng(0)
    archive: Path = tmp_path / "server" / CIFAR10.filename
    archive.parent.mkdir()
    md5s = {}
    with tarfile.open(archive, "w:gz") as tar:
        for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
            batch: dict[str, object] = {"data": rng.integers(0, 256, (20, 3072), np.uint8)}
            batch["labels"] = [i % 10 for i in range(20)]
            file = tmp_path / name
            file.write_bytes(
                pickle.dumps(batch if name != "batches.meta" else {"label_names": list("abcdefghij")})
            )
            md5s[name] = hashlib.md5(file.read_bytes()).hexdigest()
            tar.add(file, f"{CIFAR10.base_folder}/{name}")
    monkeypatch.setattr(
        CIFAR10, "train_list", [[f"data_batch_{i}", md5s[f"data_batch_{i}"]] for i in range(1, 6)]
    )
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5s["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5s["batches.meta"]})
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{closed_port}/{CIFAR10.filename}")
    return archive


@pytest.fixture
def server(tiny_cifar10: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Bring the archive's address to life."""
    monkeypatch.setattr(urllib.request, "_opener", None)  # one made while a test set a proxy would keep it
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tiny_cifar10.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{httpd.server_port}/{CIFAR10.filename}")
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield
        httpd.shutdown()


def write_idx(path: Path, array: np.ndarray) -> None:
    """A file of the format in which MNIST is published: magic number, sizes, bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """Files in the published format with other pixels: each image holds its own number and its label."""
    root, raw = tmp_path_factory.mktemp("mnist"), {}
    for part, n in (("train", 60_000), ("t10k", 10_000)):
        number = np.arange(n)
        images = np.zeros((n, 28, 28), np.uint8)
        labels = (number % 10).astype(np.uint8)
        images[:, 0, 0], images[:, 0, 1], images[:, 0, 2] = number % 251, number // 251, labels
        write_idx(root / "MNIST" / "raw" / f"{part}-images-idx3-ubyte", images)
        write_idx(root / "MNIST" / "raw" / f"{part}-labels-idx1-ubyte", labels)
        raw[part] = images
    return root, raw


class TestMnist:
    @staticmethod
    def config(root: Path, **changes: Any) -> MnistConfig:
        values = {"val_fraction": 0.1, "download": False} | changes
        return MnistConfig(name="mnist", label="mnist", mean=[0.1], std=[0.3], root=str(root), **values)

    def test_torchvisions_files(self, files: tuple[Path, dict[str, np.ndarray]]) -> None:
        root, raw = files
        splits = load(self.config(root))
        assert [len(split) for split in (splits.train, splits.val, splits.test)] == [54_000, 6_000, 10_000]
        assert (splits.shape, splits.n_classes) == ((1, 28, 28), 10)
        assert torch.equal(splits.test.images[:, 0], torch.from_numpy(raw["t10k"]))
        for split in (splits.train, splits.val, splits.test):
            assert torch.equal(split.images[:, 0, 0, 2].long(), split.targets)
        pixels = torch.cat([splits.train.images, splits.val.images])[:, 0, 0].int()
        numbers = pixels[:, 0] + 251 * pixels[:, 1]
        assert torch.equal(numbers.sort().values, torch.arange(60_000, dtype=torch.int32))

    def test_padding(self, files: tuple[Path, dict[str, np.ndarray]], check_zero_eps: CheckZeroEps) -> None:
        plain, padded = load(self.config(files[0])), load(self.config(files[0], padding=2))
        check_zero_eps(padded)
        assert padded.shape == (1, 32, 32)
        for one, other in ((plain.train, padded.train), (plain.test, padded.test)):
            assert torch.equal(one.images, other.images[:, :, 2:-2, 2:-2])
            assert int(other.images.sum()) == int(one.images.sum())

    def test_absent_files_are_asked_for_by_name(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError) as caught:
            load(self.config(tmp_path))
        assert "dataset.root: MNIST is not in" in str(caught.value)
        assert "train-images-idx3-ubyte.gz" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_another_tree_of_images_is_not_mnist(self, tmp_path: Path) -> None:
        for split in ("train", "test"):
            for label in ("0", "1"):
                folder = tmp_path / split / label
                folder.mkdir(parents=True)
                for i in range(4):
                    Image.fromarray(np.full((28, 28), i, np.uint8)).save(folder / f"{i}.png")
        config = self.config(tmp_path, val_fraction=0.25, cache=str(tmp_path / "cache"))
        expected = r"is not MNIST: 8 \+ 8 images \(1, 28, 28\) in 2 classes, expected 60000 \+ 10000"
        with pytest.raises(RequestError, match=expected):
            load(config)

    def test_the_archive_holds_mnist(self, tmp_path: Path) -> None:
        """By the figures that everybody normalises MNIST with, and by the count of each digit."""
        shared = Path(os.environ.get("SSTUNE_SHARED", Path(__file__).parents[2].parent / "shared"))
        archive = shared / "data" / "mnist.tar.xz"
        if not archive.exists():
            pytest.skip(f"{archive} is absent; set SSTUNE_SHARED to the folder that holds data/mnist.tar.xz")
        splits = load(self.config(archive, cache=str(tmp_path)))
        whole = torch.cat([splits.train.images, splits.val.images]).float() / 255
        assert float(whole.mean()) == pytest.approx(0.1307, abs=5e-5)
        assert float(whole.std()) == pytest.approx(0.3081, abs=5e-5)
        counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
        assert torch.bincount(splits.test.targets).tolist() == counts


class TestCifar10:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        return tmp_path / "deep" / "data"

    @staticmethod
    def config(root: Path, download: bool = True) -> TorchvisionConfig:
        return TorchvisionConfig(name="cifar10", root=str(root), download=download, val_fraction=0.2)

    @staticmethod
    def check(splits: Splits, root: Path) -> None:
        assert [len(splits.train), len(splits.val), len(splits.test)] == [80, 20, 20]
        assert splits.classes == list("abcdefghij")
        oracle = CIFAR10(root, train=False)
        assert np.array_equal(splits.test.images.permute(0, 2, 3, 1).numpy(), oracle.data)
        assert splits.test.targets.tolist() == oracle.targets
        assert splits.val.targets.bincount().tolist() == [2] * 10
        train = {image.transpose(2, 0, 1).tobytes() for image in CIFAR10(root, train=True).data}
        assert contents(splits.train) | contents(splits.val) == train
        assert not contents(splits.train) & contents(splits.val)
        assert not [path for path in root.iterdir() if path.name.startswith(".")]

    @pytest.mark.usefixtures("server")
    def test_is_downloaded_once(
        self,
        root: Path,
        monkeypatch: pytest.MonkeyPatch,
        closed_port: int,
        check_zero_eps: CheckZeroEps,
    ) -> None:
        splits = load(self.config(root))
        self.check(splits, root)
        check_zero_eps(splits)
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{closed_port}/gone")
        again = load(self.config(root, download=False))
        assert again.train.digest == splits.train.digest
        assert again.val.digest == splits.val.digest

    @pytest.mark.parametrize("download", [False, True])
    def test_the_archive_put_into_root_is_enough(
        self, download: bool, root: Path, tiny_cifar10: Path
    ) -> None:
        root.mkdir(parents=True)
        (root / CIFAR10.filename).write_bytes(tiny_cifar10.read_bytes())
        self.check(load(self.config(root, download)), root)
        assert (root / CIFAR10.base_folder).is_dir()

    @pytest.mark.parametrize("name", ["data_batch_3", "batches.meta"])
    def test_a_damaged_file_is_replaced(self, name: str, root: Path, tiny_cifar10: Path) -> None:
        root.mkdir(parents=True)
        (root / CIFAR10.filename).write_bytes(tiny_cifar10.read_bytes())
        before = load(self.config(root))
        (root / CIFAR10.base_folder / name).write_bytes(b"damaged")
        splits = load(self.config(root))
        self.check(splits, root)
        assert (root / CIFAR10.base_folder / name).read_bytes() != b"damaged"
        assert splits.train.digest == before.train.digest

    @pytest.mark.usefixtures("tiny_cifar10")
    @pytest.mark.parametrize("download", [False, True])
    def test_without_a_network_the_message_says_what_to_put_where(self, download: bool, root: Path) -> None:
        with pytest.raises(RequestError) as caught:
            load(self.config(root, download))
        message = str(caught.value)
        assert "\n" not in message
        expected = [CIFAR10.filename, CIFAR10.url, CIFAR10.tgz_md5, f"into {root}"]
        assert [part for part in expected if part not in message] == []
        assert ("Connection refused" if download else "dataset.download=false") in message
        assert not root.parent.exists()

    @pytest.mark.usefixtures("server")
    def test_a_download_with_another_md5_leaves_nothing(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(CIFAR10, "tgz_md5", "0" * 32)
        before = sorted(tmp_path.iterdir())
        with pytest.raises(RequestError, match=r"was not downloaded \(File not found or corrupted"):
            load(self.config(root))
        assert sorted(tmp_path.iterdir()) == before

    @pytest.mark.usefixtures("tiny_cifar10")
    def test_a_half_downloaded_archive_of_ones_own_is_left_alone(self, root: Path) -> None:
        root.mkdir(parents=True)
        (root / CIFAR10.filename).write_bytes(b"half")
        with pytest.raises(RequestError, match=rf"{CIFAR10.filename} in .* is damaged \(its md5 is not "):
            load(self.config(root))
        assert [(path.name, path.read_bytes()) for path in root.iterdir()] == [(CIFAR10.filename, b"half")]


def test_labels_are_int64_whatever_the_source() -> None:
    assert load(DigitsConfig(name="digits")).train.targets.dtype == torch.int64
