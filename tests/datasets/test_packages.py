"""Published datasets in their own formats on disk, but smaller; torchvision's tables name their md5."""

from __future__ import annotations

import hashlib
import http.server
import os
import pickle
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
from scipy.io import savemat
from torchvision.datasets import CIFAR100, SVHN, FashionMNIST, Flowers102, Imagenette

from sstune.datasets import Splits, fingerprint, load, trees
from sstune.datasets.contents import scan
from sstune.schema import DownloadedFolderConfig, MnistConfig, RequestError, TorchvisionConfig

Photograph = Callable[..., Path]
CheckZeroEps = Callable[[Splits], None]


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A directory, and the local address under which its files can be downloaded."""
    monkeypatch.setattr(urllib.request, "_opener", None)  # one made while a test set a proxy would keep it
    (tmp_path / "served").mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield tmp_path / "served", f"http://127.0.0.1:{httpd.server_port}/"
        httpd.shutdown()


Prepared = tuple[Any, list[Path], Path]  # a configuration, its published files, and where below root they go


@pytest.fixture
def cifar100(served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    at, url = served
    fine = list(range(100)) * 4
    contents = {
        "train": {"data": noise(400, 3072), "fine_labels": fine, "coarse_labels": [0] * 400},
        "test": {"data": noise(100, 3072, seed=1), "fine_labels": fine[:100], "coarse_labels": [0] * 100},
        "meta": {"fine_label_names": [f"thing{i}" for i in range(100)]},
    }
    with tarfile.open(at / CIFAR100.filename, "w:gz") as tar:
        for name, content in contents.items():
            (tmp_path / name).write_bytes(pickle.dumps(content))
            tar.add(tmp_path / name, f"{CIFAR100.base_folder}/{name}")
    monkeypatch.setattr(CIFAR100, "train_list", [["train", md5(tmp_path / "train")]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", md5(tmp_path / "test")]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": md5(tmp_path / "meta")})
    monkeypatch.setattr(CIFAR100, "tgz_md5", md5(at / CIFAR100.filename))
    monkeypatch.setattr(CIFAR100, "url", url + CIFAR100.filename)
    config = TorchvisionConfig(name="cifar100", root=str(tmp_path / "root"), val_fraction=0.25)
    return config, [at / CIFAR100.filename], Path()


@pytest.fixture
def svhn(served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    at, url = served
    table = {}
    for part, n in (("train", 60), ("test", 20)):
        file = at / f"{part}_32x32.mat"
        labels = np.arange(n)[:, None] % 10 + 1  # 1..10, where 10 is the digit 0
        savemat(file, {"X": noise(32, 32, 3, n), "y": labels.astype(np.uint8)})
        table[part] = [url + file.name, file.name, md5(file)]
    monkeypatch.setattr(SVHN, "split_list", table)
    config = TorchvisionConfig(name="svhn", root=str(tmp_path / "root"), val_fraction=0.5)
    return config, [at / "train_32x32.mat", at / "test_32x32.mat"], Path()


@pytest.fixture
def flowers102(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photograph: Photograph
) -> Prepared:
    """102 classes of one training, one validation and two test images, 408 in all, of different sizes."""
    at, url = served
    ids = np.random.default_rng(1).permutation(408) + 1
    labels = np.empty(408, np.uint8)
    labels[ids - 1] = np.arange(408) % 102 + 1
    with tarfile.open(at / "102flowers.tgz", "w:gz") as tar:
        for i in range(1, 409):
            file = photograph(tmp_path / "jpg" / f"image_{i:05}.jpg", (20 + i % 5, 24), seed=i)
            tar.add(file, f"jpg/{file.name}")
    savemat(at / "imagelabels.mat", {"labels": labels})
    savemat(at / "setid.mat", {"trnid": ids[:102], "valid": ids[102:204], "tstid": ids[204:]})
    names = {"image": "102flowers.tgz", "label": "imagelabels.mat", "setid": "setid.mat"}
    monkeypatch.setattr(Flowers102, "_file_dict", {k: (name, md5(at / name)) for k, name in names.items()})
    monkeypatch.setattr(Flowers102, "_download_url_prefix", url)
    config = DownloadedFolderConfig(
        name="flowers102",
        root=str(tmp_path / "root"),
        val_split="val",
        image_size=16,
        cache=str(tmp_path / "c"),
    )
    return config, [at / name for name in names.values()], Path("flowers-102")


@pytest.fixture
def imagenette(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photograph: Photograph
) -> Prepared:
    at, url = served
    with tarfile.open(at / "imagenette2-320.tgz", "w:gz") as tar:
        for c, wnid in enumerate(Imagenette._WNID_TO_CLASS):
            for i, split in enumerate(["train"] * 4 + ["val"] * 2):
                name = f"imagenette2-320/{split}/{wnid}/{i}.JPEG"
                tar.add(photograph(tmp_path / "made" / name, (40, 32), seed=10 * c + i), name)
    monkeypatch.setattr(
        Imagenette, "_ARCHIVES", {"320px": (url + "imagenette2-320.tgz", md5(at / "imagenette2-320.tgz"))}
    )
    monkeypatch.setattr(trees, "IMAGENETTE", 60)
    config = DownloadedFolderConfig(
        name="imagenette",
        root=str(tmp_path / "root"),
        val_fraction=0.25,
        test_split="val",
        image_size=16,
        stream=True,
        cache=str(tmp_path / "c"),
    )
    return config, [at / "imagenette2-320.tgz"], Path()


NAMES = ["cifar100", "svhn", "flowers102", "imagenette"]
SIZES = {
    "cifar100": (300, 100, 100, 100),
    "svhn": (30, 30, 20, 10),
    "flowers102": (102, 102, 204, 102),
    "imagenette": (30, 10, 20, 10),
}


@pytest.fixture(params=NAMES)
def prepared(request: pytest.FixtureRequest) -> Prepared:
    config, files, where = request.getfixturevalue(request.param)
    return config, files, where


def check(config: Any) -> list[str]:
    splits = load(config)
    sizes = len(splits.train), len(splits.val), len(splits.test), splits.n_classes
    assert sizes == SIZES[config.name]
    assert splits.train.targets.unique().tolist() == list(range(splits.n_classes))
    assert not [path for path in Path(config.root).iterdir() if path.name.startswith(".")]
    return [splits.train.digest, splits.val.digest, splits.test.digest]


class TestInstallation:
    def test_is_downloaded_once(self, prepared: Prepared) -> None:
        config, files, _ = prepared
        assert fingerprint(config) is None
        first = check(config)
        for file in files:
            file.unlink()
        config.download = False
        assert check(config) == first
        assert fingerprint(config) is None

    def test_files_put_where_torchvision_looks_are_enough(self, prepared: Prepared) -> None:
        config, files, where = prepared
        (Path(config.root) / where).mkdir(parents=True)
        for file in files:
            file.rename(Path(config.root) / where / file.name)
        config.download = False
        assert len(set(check(config))) == 3

    @pytest.mark.parametrize("download", [False, True])
    def test_otherwise_one_line_says_what_to_put_where(self, prepared: Prepared, download: bool) -> None:
        config, files, where = prepared
        config.download = download
        named = [f"{file.name} (from http://127.0.0.1" for file in files] + [md5(file) for file in files]
        for file in files:
            file.unlink()
        with pytest.raises(RequestError) as caught:
            load(config)
        message = str(caught.value)
        assert "\n" not in message
        assert [part for part in [*named, f"into {Path(config.root) / where}"] if part not in message] == []
        assert ("404" if download else "dataset.download=false") in message
        assert not Path(config.root).exists()

    def test_a_download_that_breaks_off_leaves_nothing_and_takes_nothing_away(
        self, prepared: Prepared
    ) -> None:
        config, files, where = prepared
        mine = Path(config.root) / where / "mine.txt"
        mine.parent.mkdir(parents=True)
        mine.write_text("keep")
        files[-1].write_bytes(files[-1].read_bytes()[:-1])
        with pytest.raises(RequestError, match="was not downloaded"):
            load(config)
        assert [path for path in Path(config.root).rglob("*") if path.is_file()] == [mine]


def test_zero_eps_changes_no_judgement(prepared: Prepared, check_zero_eps: CheckZeroEps) -> None:
    check_zero_eps(load(prepared[0]))


def test_cifar100_is_torchvisions(cifar100: Prepared) -> None:
    splits = load(cifar100[0])
    oracle = CIFAR100(cifar100[0].root, train=False)
    assert isinstance(splits.test.images, torch.Tensor)
    assert np.array_equal(splits.test.images.permute(0, 2, 3, 1).numpy(), oracle.data)
    assert splits.test.targets.tolist() == oracle.targets
    assert splits.classes == [f"thing{i}" for i in range(100)]


def test_svhn_is_torchvisions_and_the_digit_0_has_the_label_0(svhn: Prepared) -> None:
    splits = load(svhn[0])
    oracle = SVHN(svhn[0].root, "test")
    assert isinstance(splits.test.images, torch.Tensor)
    assert splits.shape == (3, 32, 32)
    for i, (image, label) in enumerate(oracle):
        assert np.array_equal(splits.test.images[i].permute(1, 2, 0).numpy(), np.asarray(image))
        assert splits.test.targets[i] == label == (i + 1) % 10


@pytest.mark.parametrize("stream", [False, True])
def test_flowers_have_their_official_splits_and_names(flowers102: Prepared, stream: bool) -> None:
    config = flowers102[0]
    config.stream = stream
    splits = load(config, workers=0)
    assert splits.classes == Flowers102.classes
    for name in ("train", "val", "test"):
        split = getattr(splits, name)
        oracle = Flowers102(config.root, name)
        assert sorted(split.targets.tolist()) == sorted(oracle._labels)
        if stream:
            files = {
                os.fsdecode(bytes(file)): label
                for file, label in zip(split.images.names, split.targets.tolist(), strict=True)
            }
            assert files == {
                f"jpg/{file.name}": label
                for file, label in zip(oracle._image_files, oracle._labels, strict=True)
            }
    config.train_split, config.test_split = "test", "train"
    assert [len(load(config).train), len(load(config).test)] == [204, 102]


def test_a_flower_that_is_missing_is_named(flowers102: Prepared) -> None:
    config = flowers102[0]
    load(config)
    (Path(config.root) / "flowers-102/jpg/image_00007.jpg").unlink()
    scan.cache_clear()
    for stream in (False, True):
        config.stream = stream
        with pytest.raises(
            RequestError, match=r"1 images are missing in .*, the first is jpg/image_00007.jpg"
        ):
            load(config)


def test_imagenette_may_be_a_tree_of_ones_own_and_must_be_whole(imagenette: Prepared) -> None:
    config = imagenette[0]
    downloaded = load(config)
    config.root, config.download = str(Path(config.root) / "imagenette2-320"), False
    assert load(config).test.digest == downloaded.test.digest
    assert fingerprint(config) is not None
    next(Path(config.root).glob("train/*/0.JPEG")).unlink()
    scan.cache_clear()
    with pytest.raises(RequestError, match=r"not Imagenette: 59 images, expected 60; use dataset=folder"):
        load(config)


def test_fashion_mnist_is_read_from_its_own_folder(tmp_path: Path, check_zero_eps: CheckZeroEps) -> None:
    config = MnistConfig(name="fashion_mnist", root=str(tmp_path), download=False, padding=2)
    with pytest.raises(RequestError) as caught:
        load(config)
    expected = [
        f"{name} (from {FashionMNIST.mirrors[-1]}{name}, md5 {md5})" for name, md5 in FashionMNIST.resources
    ]
    assert [
        part
        for part in [*expected, f"into {tmp_path / 'FashionMNIST' / 'raw'}"]
        if part not in str(caught.value)
    ] == []
    for part, n in (("train", 60_000), ("t10k", 10_000)):
        labels = np.arange(n, dtype=np.uint32).astype(np.uint8) % 10
        images = np.broadcast_to(labels[:, None, None] * 20, (n, 28, 28))
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
            file = tmp_path / "FashionMNIST" / "raw" / f"{part}-{kind}-ubyte"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes())
    splits = load(config)
    assert splits.classes == FashionMNIST.classes
    check_zero_eps(splits)
    assert [len(splits.train), len(splits.val), len(splits.test)] == [54_000, 6_000, 10_000]
    assert splits.shape == (1, 32, 32)
    assert torch.equal(splits.test.images[:, 0, 16, 16].long(), splits.test.targets * 20)
