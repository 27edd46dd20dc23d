"""Streamed folders: real photographs as JPEG files of many sizes, read by worker processes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made import make_loader, pairs
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2

from sstune.datasets import ImageFiles, Loader, Split, Splits, batches, contents, load
from sstune.datasets import files as files_module
from sstune.datasets.augmentation import random_boxes
from sstune.datasets.contents import scan
from sstune.datasets.splits import permutation
from sstune.preprocessing import Preprocessing
from sstune.schema import FolderConfig, Interpolation, RequestError
from sstune.seeding import seed_from

Config = Callable[..., FolderConfig]
Pack = Callable[..., Path]

COUNTS = {"train": 9, "test": 4}  # of each of two classes


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patches of two photographs, of random sizes; one is grey, one CMYK, one a PNG with transparency."""
    root, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for name in ("china", "flower"):
        image = Image.fromarray(load_sample_image(f"{name}.jpg"))
        for split, n in COUNTS.items():
            (root / split / name).mkdir(parents=True)
            for i in range(n):
                left, top = int(rng.integers(0, 400)), int(rng.integers(0, 200))
                box = left, top, left + int(rng.integers(30, 200)), top + int(rng.integers(30, 200))
                image.crop(box).save(root / split / name / f"{i}.JPEG", quality=90)
    Image.open(root / "test/china/0.JPEG").convert("L").save(root / "test/china/0.JPEG")
    Image.open(root / "test/china/1.JPEG").convert("CMYK").save(root / "test/china/1.JPEG")
    Image.open(root / "train/china/1.JPEG").convert("RGBA").save(root / "train/china/1.png")
    (root / "train/china/1.JPEG").unlink()
    return root


@pytest.fixture
def streamed(photographs: Path, folder_config: Config) -> Callable[..., Splits]:
    """``streamed(workers=0, **fields)``: the photographs, loaded to be streamed as 32x32 images."""

    def streamed(workers: int = 0, **fields: object) -> Splits:
        return load(
            folder_config(photographs, **{"stream": True, "image_size": 32, **fields}), workers=workers
        )

    return streamed


Streamed = Callable[..., Splits]


def paths(split: Split) -> list[str]:
    assert isinstance(split.images, ImageFiles)
    return [name.decode() for name in split.images.names]


@pytest.mark.parametrize("interpolation", Interpolation)
@pytest.mark.parametrize(
    ("size", "crop_pct", "resize"), [(32, 0.875, 36), (224, 224 / 232, 232), (20, 1.0, 20)]
)
def test_evaluation_is_image_folder_with_resize_and_centre_crop(
    size: int,
    crop_pct: float,
    resize: int,
    interpolation: Interpolation,
    photographs: Path,
    streamed: Streamed,
) -> None:
    splits = streamed(image_size=size, crop_pct=crop_pct, interpolation=interpolation)
    seen = v2.Compose(
        [v2.Resize(resize, InterpolationMode(str(interpolation))), v2.CenterCrop(size), v2.PILToTensor()]
    )
    oracle = ImageFolder(str(photographs / "test"), seen)
    assert splits.classes == oracle.classes
    assert splits.shape == (3, size, size)
    found = list(pairs(batches(splits.test, 3, "cpu")))
    assert [len(labels) for _, labels in found] == [3, 3, 2]
    assert torch.cat([labels for _, labels in found]).tolist() == oracle.targets
    images = torch.cat([images for images, _ in found])
    assert images.dtype == torch.float32
    assert all(part.is_contiguous(memory_format=torch.channels_last) for part, _ in found)
    assert torch.equal((images * 255).round(), torch.stack([image for image, _ in oracle]).float())


def test_splits_are_those_of_the_images_in_memory(
    streamed: Streamed, photographs: Path, folder_config: Config
) -> None:
    memory, files = load(folder_config(photographs, image_size=32)), streamed(workers=1)
    for one, other in ((memory.train, files.train), (memory.val, files.val), (memory.test, files.test)):
        assert torch.equal(one.targets, other.targets)
        for (expected, labels), (found, others) in zip(
            pairs(batches(one, 4, "cpu")), pairs(batches(other, 4, "cpu")), strict=True
        ):
            assert torch.equal(labels, others)
            assert torch.equal(expected, found)


def test_take_sample_and_subset(streamed: Streamed) -> None:
    splits = streamed()
    part, index = splits.train.sample(5, seed=1)
    assert paths(part) == [paths(splits.train)[i] for i in index]
    assert torch.equal(part.targets, splits.train.targets[index])
    shots = streamed(shots=2).train
    assert shots.targets.tolist() == [0, 0, 1, 1]
    assert set(paths(shots)) < set(paths(splits.train))
    assert list(pairs(batches(part.take(torch.tensor([], dtype=torch.int64)), 4, "cpu"))) == []


def test_digest_is_of_paths_sizes_and_labels(streamed: Streamed, photographs: Path) -> None:
    split = streamed().test
    content = b"files"
    for name, label in zip(paths(split), split.targets.tolist(), strict=True):
        content += f"{name}\0{(photographs / name).stat().st_size}\0{label}\0".encode()
    assert split.digest == hashlib.sha256(content).hexdigest()
    assert split.take(torch.arange(7)).digest != split.digest


AUGMENTED = {
    "crop_padding": 3,
    "flip": True,
    "crop_scale": 0.2,
    "transforms": {"RandAugment": {}},
    "cutout": 9,
}


def pixels_by_path(loader: Loader, epoch: int, start_step: int = 0) -> dict[str, torch.Tensor]:
    names = iter(
        paths(loader.split.take(torch.from_numpy(order_of(loader, epoch)[start_step * loader.batch_size :])))
    )
    return {next(names): image for images, _ in pairs(loader.epoch(epoch, start_step)) for image in images}


def order_of(loader: Loader, epoch: int) -> np.ndarray:
    return permutation(len(loader.split), seed_from(loader.seed, "order", epoch)).numpy()


class TestTraining:
    @pytest.fixture
    def loader(self, streamed: Streamed) -> Callable[..., Loader]:
        split = streamed(val_fraction=0.12).train  # 16 images

        def loader(batch_size: int = 4, workers: int = 0, **settings: object) -> Loader:
            read = Split(replace(split.images, workers=workers), split.targets)
            return make_loader(read, batch_size, "cpu", **{"seed": 3, **AUGMENTED, **settings})

        return loader

    def test_workers_and_batches_change_no_pixel(self, loader: Callable[..., Loader]) -> None:
        expected = pixels_by_path(loader(), 1)
        assert len(expected) == 16
        for settings in ({"workers": 1}, {"workers": 2}, {"batch_size": 7, "workers": 2}, {"batch_size": 16}):
            found = pixels_by_path(loader(**settings), 1)
            assert all(torch.equal(image, expected[name]) for name, image in found.items())
            assert len(found) == 16

    def test_an_epoch_taken_up_in_the_middle_goes_on_bit_by_bit(self, loader: Callable[..., Loader]) -> None:
        whole, late = list(pairs(loader().epoch(2))), list(pairs(loader(workers=2).epoch(2, start_step=3)))
        assert len(late) == len(whole) - 3 == 1
        assert torch.equal(late[0][0], whole[3][0])
        assert torch.equal(late[0][1], whole[3][1])

    def test_ranks_together_are_the_single_process(self, loader: Callable[..., Loader]) -> None:
        single = list(pairs(loader(7).epoch(0)))
        ranks = [list(pairs(loader(7, rank=rank, world_size=3, workers=rank).epoch(0))) for rank in range(3)]
        for parts, (images, labels) in zip(zip(*ranks, strict=True), single[:2], strict=True):
            assert torch.equal(torch.cat([part for part, _ in parts]), images)
            assert torch.equal(torch.cat([part for _, part in parts]), labels)

    def test_epochs_and_seeds_differ(self, loader: Callable[..., Loader]) -> None:
        first = pixels_by_path(loader(), 0)
        for other in (pixels_by_path(loader(), 1), pixels_by_path(loader(seed=4), 0)):
            assert not any(torch.equal(image, first[name]) for name, image in other.items())

    def test_the_global_random_state_is_neither_read_nor_written(self, loader: Callable[..., Loader]) -> None:
        torch.manual_seed(0)
        before = torch.get_rng_state()
        first = pixels_by_path(loader(workers=1), 0)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(1)
        again = pixels_by_path(loader(workers=1), 0)
        assert all(torch.equal(image, again[name]) for name, image in first.items())

    def test_a_random_crop_is_a_box_of_the_file_resized(
        self, loader: Callable[..., Loader], photographs: Path
    ) -> None:
        plain = loader(crop_padding=0, flip=False, transforms=None, cutout=0)
        found = pixels_by_path(plain, 0)
        for position, name in enumerate(paths(plain.split)):
            image = Image.open(photographs / name).convert("RGB")
            noise = torch.Generator().manual_seed(seed_from(3, "augmentation", 0, position))
            box = random_boxes(1, image.height, image.width, 0.2, noise)[0].tolist()
            expected = v2.functional.resized_crop(image, *box, [32, 32])
            assert torch.equal((found[name] * 255).round(), v2.functional.pil_to_tensor(expected).float())

    def test_without_any_augmentation_training_sees_the_centre(self, streamed: Streamed) -> None:
        split = streamed().test
        centre = torch.cat([images for images, _ in pairs(batches(split, 8, "cpu"))])
        loader = make_loader(split, 8, "cpu", 0)
        ((images, _),) = pairs(loader.epoch(0))
        assert torch.equal(images, centre[torch.from_numpy(order_of(loader, 0))])


@pytest.mark.parametrize("size", [(24, 24), (24, 48), (48, 24)])
def test_a_backbones_preprocessing_replaces_the_datasets(
    size: tuple[int, int], photographs: Path, folder_config: Config
) -> None:
    wanted = Preprocessing((0.0,) * 3, (1.0,) * 3, size, 0.8, Interpolation.bicubic)
    height, width = size
    splits = load(folder_config(photographs, stream=True), wanted, workers=0)
    assert splits.shape == (3, height, width)
    images = torch.cat([images for images, _ in pairs(batches(splits.test, 8, "cpu"))])
    assert images.shape == (8, 3, height, width)
    if height == width:
        seen = v2.Compose([v2.Resize(30, InterpolationMode.BICUBIC), v2.CenterCrop(24), v2.PILToTensor()])
        oracle = ImageFolder(str(photographs / "test"), seen)
        assert torch.equal((images * 255).round(), torch.stack([image for image, _ in oracle]).float())
    memory = folder_config(photographs, image_size=16)
    assert load(memory, wanted).shape == (3, 16, 16)


def test_what_cannot_be_streamed(
    streamed: Streamed, photographs: Path, pack: Pack, folder_config: Config
) -> None:
    with pytest.raises(RequestError, match=r"dataset.image_size: must be set"):
        streamed(image_size=None)
    with pytest.raises(RequestError, match=r"dataset.stream: needs a directory, .*a.tar is an archive"):
        load(folder_config(pack(photographs, "a.tar"), stream=True, image_size=32))


def test_workers_are_those_asked_for_and_by_default_leave_a_core(
    streamed: Streamed, photographs: Path, folder_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def workers(split: Split) -> int:
        assert isinstance(split.images, ImageFiles)
        return split.images.workers

    monkeypatch.setattr(files_module.os, "sched_getaffinity", lambda _: range(9))
    assert workers(load(folder_config(photographs, stream=True, image_size=8)).test) == 8
    assert workers(streamed(workers=3).val) == 3
    for processes, expected in ((1, 8), (2, 3), (4, 1), (9, 1), (20, 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert files_module.default_workers() == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_sees_the_same_streamed_batches(streamed: Streamed) -> None:
    split = streamed(workers=2).train
    make = lambda device: make_loader(split, 4, device, 0, **AUGMENTED)  # noqa: E731
    for (images, labels), (expected, expected_labels) in zip(
        pairs(make("cuda").epoch(0)), pairs(make("cpu").epoch(0)), strict=True
    ):
        assert images.is_cuda
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal((images.cpu() * 255).round(), (expected * 255).round())
        assert torch.equal(labels.cpu(), expected_labels)


def test_a_directory_is_scanned_once_per_process(streamed: Streamed, monkeypatch: pytest.MonkeyPatch) -> None:
    scan.cache_clear()
    streamed()
    monkeypatch.setattr(contents, "walk", lambda *_: pytest.fail("scanned again"))
    assert len(streamed(shots=1).train) == 2
