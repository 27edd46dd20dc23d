from __future__ import annotations

import errno
import io
import os
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

from sstune.datasets import Splits, cache, folder, load
from sstune.datasets.contents import scan
from sstune.datasets.decoding import View
from sstune.schema import FolderConfig, RequestError

Pack = Callable[..., Path]
Config = Callable[..., FolderConfig]


def digests(splits: Splits) -> list[str]:
    return [splits.train.digest, splits.val.digest, splits.test.digest]


def contents(images: torch.Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in images]


def test_order_labels_and_pixels_are_those_of_image_folder(tree: Path, folder_config: Config) -> None:
    splits = load(folder_config(tree))
    oracle = ImageFolder(str(tree / "test"))
    assert splits.classes == oracle.classes == ["eight", "one", "zero"]
    assert splits.test.targets.tolist() == oracle.targets
    pixels = np.stack([np.asarray(image)[:, :, 0] for image, _ in oracle])[:, None]
    assert np.array_equal(splits.test.images.numpy(), pixels)
    assert (splits.channels, splits.image_size, splits.n_classes) == (1, (8, 8), 3)


def test_validation_is_split_off_train_stratified_and_nothing_is_shared(
    tree: Path, folder_config: Config
) -> None:
    splits = load(folder_config(tree, val_fraction=0.2))
    assert [len(splits.train), len(splits.val), len(splits.test)] == [24, 6, 12]
    assert splits.val.targets.bincount().tolist() == [2, 2, 2]
    oracle = ImageFolder(str(tree / "train"))
    whole = [np.asarray(image)[:, :, 0].tobytes() for image, _ in oracle]
    parts = contents(splits.train.images) + contents(splits.val.images)
    assert sorted(parts) == sorted(whole)
    assert len(set(parts + contents(splits.test.images))) == 42


def test_a_named_validation_split_leaves_train_whole(tree: Path, folder_config: Config) -> None:
    (tree / "valid/one").mkdir(parents=True)
    Image.new("L", (8, 8), 77).save(tree / "valid/one/0.png")
    splits = load(folder_config(tree, val_split="valid"))
    assert [len(splits.train), len(splits.val), len(splits.test)] == [30, 1, 12]
    assert splits.val.targets.tolist() == [1]
    assert splits.val.images.unique().tolist() == [77]


def shuffled(files: list[Path]) -> list[Path]:
    return random.Random(0).sample(files, len(files))


@pytest.mark.parametrize("suffix", [".tar", ".tar.xz", ".tar.gz"])
@pytest.mark.parametrize("prefix", ["", "wrapping/"])
@pytest.mark.parametrize("order", [sorted, shuffled])
def test_archive_and_directory_are_equal(
    suffix: str, prefix: str, order: Callable[..., list[Path]], tree: Path, pack: Pack, folder_config: Config
) -> None:
    packed = load(folder_config(pack(tree, f"a{suffix}", prefix, order)))
    assert digests(packed) == digests(load(folder_config(tree)))


def test_one_colour_image_makes_all_of_them_rgb(tree: Path, folder_config: Config) -> None:
    grey = load(folder_config(tree))
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[2, 5] = 10, 20, 30
    Image.fromarray(pixels).save(tree / "test/zero/9999.png")
    Image.fromarray(pixels[:, :, 0] > 5).save(tree / "test/zero/99999.png")
    scan.cache_clear()
    colour = load(folder_config(tree))
    assert colour.channels == 3
    assert torch.equal(colour.train.images, grey.train.images.expand(-1, 3, -1, -1))
    assert colour.test.images[-2, :, 2, 5].tolist() == [10, 20, 30]
    assert colour.test.images[-1, :, 2, 5].tolist() == [255, 255, 255]


def test_several_sizes_need_image_size(tree: Path, folder_config: Config) -> None:
    Image.new("L", (9, 7)).save(tree / "test/zero/0001.png")
    with pytest.raises(RequestError, match=r"dataset.image_size: .*8x8.*test/zero/0001.png 9x7"):
        load(folder_config(tree))
    assert load(folder_config(tree, image_size=6)).image_size == (6, 6)


@pytest.mark.parametrize("shape", [(8, 8), (40, 23), (23, 40), (9, 31), (31, 10), (5, 6), (7, 300)])
@pytest.mark.parametrize("size", [1, 7, 8, 16])
def test_resizing_is_torchvisions(shape: tuple[int, int], size: int, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    file = tmp_path / "train/a/1.png"
    file.parent.mkdir(parents=True)
    Image.fromarray(noise).save(file)
    found = folder.decode(tmp_path, View((size, size))).images[0]
    expected = transforms.CenterCrop(size)(transforms.Resize(size)(Image.fromarray(noise)))
    assert np.array_equal(found, np.asarray(expected).transpose(2, 0, 1))


@pytest.fixture(params=["small files, decoded at once", "large files, decoded in threads"])
def _file_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param.startswith("large"):
        monkeypatch.setattr(folder, "_SMALL_FILE", 0)
        monkeypatch.setattr(folder, "_IN_FLIGHT", 5)


@pytest.mark.usefixtures("_file_size")
class TestDecoding:
    def test_threads_change_nothing(self, tree: Path) -> None:
        decoded = folder.decode(tree, None)
        assert decoded.paths == sorted(decoded.paths)
        for path, image in zip(decoded.paths, decoded.images, strict=True):
            assert np.array_equal(image[0], np.asarray(Image.open(tree / path)))

    @pytest.mark.parametrize("packed", [False, True])
    @pytest.mark.parametrize("damage", ["empty", "truncated", "text"])
    def test_an_undecodable_image_is_named(self, packed: bool, damage: str, tree: Path, pack: Pack) -> None:
        file = tree / "train/one/0004.png"
        content = file.read_bytes()
        file.write_bytes({"empty": b"", "truncated": content[:-40], "text": b"hello" * 20}[damage])
        with pytest.raises(RequestError, match=r"cannot decode train/one/0004.png in "):
            folder.decode(pack(tree, "a.tar.gz") if packed else tree, None)

    def test_more_than_8_bits_are_refused(self, tree: Path) -> None:
        Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(tree / "train/one/0004.png")
        with pytest.raises(RequestError, match=r"train/one/0004.png .* 8 bits"):
            folder.decode(tree, None)

    def test_too_much_for_memory_is_refused(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(folder, "MAX_BYTES", 42 * 64)
        assert folder.decode(tree, None).images.nbytes == 42 * 64
        monkeypatch.setattr(folder, "MAX_BYTES", 42 * 64 - 1)
        with pytest.raises(RequestError, match=r"GiB of memory; .* dataset.image_size"):
            folder.decode(tree, None)


def test_an_image_twice_in_an_archive_is_refused(tree: Path, pack: Pack) -> None:
    root = pack(tree, "a.tar")
    content = (tree / "train/one/0000.png").read_bytes()
    with tarfile.open(root, "a") as tar:
        member = tarfile.TarInfo("./train/one/0000.png")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    with pytest.raises(RequestError, match=r"train/one/0000.png appears twice"):
        folder.decode(root, None)


def test_no_images_at_all(tmp_path: Path, folder_config: Config) -> None:
    with pytest.raises(RequestError, match="no image <split>/<class>/<image>"):
        load(folder_config(tmp_path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"test_split": "tets"}, r"dataset.test_split: 'tets' not found in .*; available: test, train$"),
        ({"train_split": "tarin"}, r"dataset.train_split: 'tarin' not found in .*; available: train, test$"),
        ({"val_split": "val"}, r"dataset.val_split: 'val' not found in .*; available: "),
        ({"val_split": "test"}, r"splits must not share images.*test_split=test, val_split=test"),
        ({"test_split": "train"}, r"splits must not share images"),
        ({"val_fraction": 0.001}, r"dataset.val_fraction: 0.001 of 30 images"),
    ],
)
def test_wrong_requests(fields: dict[str, str], message: str, tree: Path, folder_config: Config) -> None:
    with pytest.raises(RequestError, match=message):
        load(folder_config(tree, **fields))


def test_a_class_that_train_lacks_is_refused_but_one_that_test_lacks_is_not(
    tree: Path, folder_config: Config
) -> None:
    (tree / "test/one").rename(tree / "test/two")
    with pytest.raises(
        RequestError, match=r"dataset.test_split: class 'two' of 'test' is absent from 'train'"
    ):
        load(folder_config(tree))
    for file in (tree / "test/two").iterdir():
        file.unlink()
    scan.cache_clear()
    assert load(folder_config(tree)).test.targets.unique().tolist() == [0, 2]


class TestCache:
    @pytest.fixture
    def config(self, tree: Path, pack: Pack, folder_config: Config) -> FolderConfig:
        return folder_config(pack(tree, "a.tar.xz"))

    @pytest.fixture
    def decoded(self, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        """The roots that were decoded, in order."""
        roots: list[Path] = []
        decode = folder.decode

        def spy(root: Path, *details: Any) -> cache.Decoded:
            roots.append(root)
            return decode(root, *details)

        monkeypatch.setattr(folder, "decode", spy)
        return roots

    def test_decodes_once_and_serves_any_choice_of_splits(
        self, config: FolderConfig, decoded: list[Path], folder_config: Config
    ) -> None:
        first = load(config)
        assert digests(load(config)) == digests(first)
        swapped = folder_config(Path(config.root), train_split="test", test_split="train", val_fraction=0.3)
        assert len(load(swapped).test) == 30
        assert len(decoded) == 1
        load(folder_config(Path(config.root), image_size=4))
        assert len(decoded) == 2
        assert len(list(Path(config.cache).iterdir())) == 2

    def test_another_archive_is_not_taken_for_this_one(
        self, config: FolderConfig, tree: Path, pack: Pack, folder_config: Config
    ) -> None:
        before = load(config)
        Image.new("L", (8, 8), 9).save(tree / "test/one/0000.png")
        after = load(folder_config(pack(tree, "a.tar.xz")))
        assert after.test.digest != before.test.digest

    def test_a_file_edited_to_the_same_size_is_noticed(self, tree: Path, folder_config: Config) -> None:
        for file in tree.rglob("*.png"):
            Image.open(file).save(file.with_suffix(".pgm"))
            file.unlink()
        before = load(folder_config(tree))
        file = tree / "test/zero/0000.pgm"
        content = bytearray(file.read_bytes())
        content[-1] ^= 255
        stat = file.stat()
        file.write_bytes(content)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
        scan.cache_clear()
        assert load(folder_config(tree)).test.digest != before.test.digest

    @pytest.mark.parametrize("damage", [0, 1000, -1, "truncated", "empty", "text", "few paths", "float"])
    def test_a_damaged_cache_is_noticed_and_rebuilt(
        self,
        damage: int | str,
        config: FolderConfig,
        decoded: list[Path],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        intact = load(config)
        (file,) = Path(config.cache).iterdir()
        content = bytearray(file.read_bytes())
        if isinstance(damage, int):  # one bit of that pixel
            pixels = np.load(file)["images"].tobytes()
            content[content.index(pixels) + damage % len(pixels)] ^= 1
            file.write_bytes(content)
        elif damage in ("few paths", "float"):
            stored = dict(np.load(file))
            if damage == "float":
                stored["images"] = stored["images"].astype(np.float32)
            else:
                stored["paths"] = stored["paths"][:50]
            np.savez(file, **stored)
        else:
            file.write_bytes({"truncated": bytes(content[:-30]), "empty": b"", "text": b"hello" * 99}[damage])
        assert digests(load(config)) == digests(intact)
        assert "cannot be used" in caplog.text
        assert len(decoded) == 2
        load(config)
        assert len(decoded) == 2
        assert [path.suffix for path in Path(config.cache).iterdir()] == [".npz"]

    def test_an_unusable_directory_only_warns(
        self, config: FolderConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "file").touch()
        config.cache = str(tmp_path / "file" / "below")
        assert len(load(config).test) == 12
        assert "cannot write to the cache" in caplog.text

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_a_read_only_directory_only_warns(
        self, config: FolderConfig, caplog: pytest.LogCaptureFixture
    ) -> None:
        Path(config.cache).mkdir(mode=0o500)
        assert len(load(config).test) == 12
        assert "cannot write to the cache" in caplog.text

    def test_a_full_disk_only_warns_and_leaves_nothing(
        self, config: FolderConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        assert len(load(config).test) == 12
        assert "no space left on" in caplog.text
        assert list(Path(config.cache).iterdir()) == []

    def test_is_below_the_home_directory_when_told(
        self, config: FolderConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        config.cache = "~/deep/cache"
        load(config)
        assert len(list((tmp_path / "home/deep/cache").iterdir())) == 1


def test_the_real_archive(folder_config: Config) -> None:
    shared = Path(os.environ.get("SSTUNE_SHARED", Path(__file__).parents[2].parent / "shared"))
    root = shared / "data/cifar10.tar.xz"
    if not root.exists():
        pytest.skip(f"{root} is absent; set SSTUNE_SHARED to the folder that holds data/cifar10.tar.xz")
    decoded = load(folder_config(root))
    assert [len(decoded.train), len(decoded.val), len(decoded.test)] == [45_000, 5_000, 10_000]
    assert decoded.train.targets.bincount().tolist() == [4_500] * 10
    assert decoded.test.targets.bincount().tolist() == [1_000] * 10
    assert ",".join(decoded.classes) == "airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck"
    assert (decoded.channels, decoded.image_size) == (3, (32, 32))
    assert digests(load(folder_config(root))) == digests(decoded)
