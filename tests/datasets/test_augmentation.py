from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made import make_loader, pairs
from sklearn.datasets import load_sample_image
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as oracle

from sstune.datasets import load
from sstune.datasets.augmentation import Augmentation, Draws, build_transforms, check_transforms, random_boxes
from sstune.datasets.loader import Loader
from sstune.datasets.splits import Split
from sstune.schema import DigitsConfig, FolderConfig, RequestError


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def photographs() -> torch.Tensor:
    """Real pixels, uint8 [12, 3, 40, 32]: patches of two photographs."""
    patches = []
    for name in ("china.jpg", "flower.jpg"):
        image = torch.tensor(load_sample_image(name)).permute(2, 0, 1)
        patches += [image[:, 60 * i : 60 * i + 40, 90 * i : 90 * i + 32] for i in range(6)]
    return torch.stack(patches)


class TestBoxes:
    @given(
        height=st.integers(1, 300),
        width=st.integers(1, 300),
        scale=st.floats(0.01, 1),
        seed=st.integers(0, 2**32),
    )
    def test_lie_in_the_image_and_have_the_asked_shape(
        self, height: int, width: int, scale: float, seed: int
    ) -> None:
        boxes = random_boxes(20, height, width, scale, noise(seed))
        tops, lefts, heights, widths = boxes.T
        assert boxes.shape == (20, 4)
        assert boxes.dtype == torch.int64
        assert min(tops.min(), lefts.min()) >= 0
        assert min(heights.min(), widths.min()) >= 1
        assert (tops + heights).max() <= height
        assert (lefts + widths).max() <= width
        for h, w in zip(heights.tolist(), widths.tolist(), strict=True):  # half a pixel of rounding per side
            assert (w - 0.5) / (h + 0.5) <= 4 / 3 + 1e-9
            assert (w + 0.5) / (h - 0.5) >= 3 / 4 - 1e-9
            central = (h, w) == (min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3)))
            assert (h + 0.5) * (w + 0.5) >= scale * height * width or central

    def test_are_distributed_as_torchvisions(self) -> None:
        """Quantiles of area, aspect ratio and place against 4,000 draws of RandomResizedCrop itself."""
        n, height, width, scale = 4000, 120, 160, 0.08
        ours = random_boxes(n, height, width, scale, noise(1)).double().numpy()
        crop = v2.RandomResizedCrop(10, scale=(scale, 1))
        image = torch.zeros(3, height, width, dtype=torch.uint8)
        with torch.random.fork_rng():
            torch.manual_seed(2)
            drawn = [crop.make_params([image]) for _ in range(n)]
        theirs = np.array([[box[key] for key in ("top", "left", "height", "width")] for box in drawn], float)
        for measure in (
            lambda b: b[:, 2] * b[:, 3] / (height * width),
            lambda b: np.log(b[:, 3] / b[:, 2]),
            lambda b: (b[:, 0] + b[:, 2] / 2) / height,
            lambda b: (b[:, 1] + b[:, 3] / 2) / width,
        ):
            both = np.sort(np.concatenate([measure(ours), measure(theirs)]))
            at = [
                np.searchsorted(np.sort(measure(boxes)), both, side="right") / n for boxes in (ours, theirs)
            ]
            assert np.abs(at[0] - at[1]).max() < 1.95 * math.sqrt(2 / n)  # Kolmogorov-Smirnov, p = 0.001

    def test_where_nothing_fits_the_centre_is_taken(self) -> None:
        assert random_boxes(3, 10, 100, 1.0, noise()).tolist() == [[0, 43, 10, 13]] * 3
        assert random_boxes(3, 100, 10, 1.0, noise()).tolist() == [[43, 0, 13, 10]] * 3


class TestResizedCrops:
    def test_are_torchvisions(self, photographs: torch.Tensor) -> None:
        augmentation = Augmentation(crop_scale=0.1)
        drawn = augmentation.draw(12, 40, 32, noise())
        assert drawn.boxes is not None
        found = augmentation(photographs, drawn)
        assert found.dtype == torch.uint8
        for image, box, result in zip(photographs, drawn.boxes.tolist(), found, strict=True):
            expected = oracle.resized_crop(image.float(), *box, [40, 32], InterpolationMode.BILINEAR, True)
            assert (result - expected).abs().max() <= 0.501

    def test_the_whole_image_is_left_as_it_is(self, photographs: torch.Tensor) -> None:
        whole = torch.tensor([[0, 0, 40, 32]]).expand(12, 4)
        assert torch.equal(Augmentation(crop_scale=1.0)(photographs, Draws(boxes=whole)), photographs)

    def test_single_pixels(self) -> None:
        images = torch.arange(1, 7, dtype=torch.uint8).reshape(6, 1, 1, 1)
        augmentation = Augmentation(crop_scale=0.5)
        assert torch.equal(augmentation(images, augmentation.draw(6, 1, 1, noise())), images)


class TestCutout:
    @given(size=st.integers(1, 9), height=st.integers(1, 7), width=st.integers(1, 7), seed=st.integers(0, 99))
    def test_blanks_a_clipped_square_and_nothing_else(
        self, size: int, height: int, width: int, seed: int
    ) -> None:
        images = torch.full((5, 2, height, width), 7, dtype=torch.uint8)
        augmentation = Augmentation(cutout=size)
        drawn = augmentation.draw(5, height, width, noise(seed))
        assert drawn.centres is not None
        for result, (row, column) in zip(augmentation(images, drawn), drawn.centres.tolist(), strict=True):
            for y in range(height):
                for x in range(width):
                    top, left = row - size // 2, column - size // 2
                    blank = top <= y < top + size and left <= x < left + size
                    assert result[:, y, x].tolist() == ([0, 0] if blank else [7, 7])

    def test_centres_are_uniform(self) -> None:
        centres = Augmentation(cutout=1).draw(12_000, 3, 4, noise()).centres
        assert centres is not None
        counts = np.bincount((centres[:, 0] * 4 + centres[:, 1]).numpy(), minlength=12)
        assert (
            (counts - 1000) ** 2 / 1000
        ).sum() < 31.3  # 11 degrees of freedom, p = 0.001; the seed is fixed


def test_old_draws_come_first_so_that_new_settings_do_not_move_them() -> None:
    """Runs of before there were the other settings are resumed and repeated with these numbers."""
    old = Augmentation(crop_padding=2, flip=True).draw(9, 6, 5, noise(3))
    everything = Augmentation(2, True, 0.3, {"RandAugment": {}}, 4).draw(9, 6, 5, noise(3))
    for name in ("top", "left", "mirrored"):
        assert torch.equal(getattr(old, name), getattr(everything, name))
    replay = noise(3)
    assert torch.equal(
        torch.cat([everything.top, everything.left], 1).T[..., None],
        torch.randint(5, (2, 9, 1), generator=replay),
    )
    assert torch.equal(everything.mirrored, torch.rand(9, 1, generator=replay) < 0.5)


class TestTransforms:
    WANTED = {"RandAugment": {"num_ops": 2}, "ColorJitter": {"brightness": 0.5}}  # noqa: RUF012

    def test_are_torchvisions_seeded_image_by_image(self, photographs: torch.Tensor) -> None:
        augmentation = Augmentation(transforms=self.WANTED)
        drawn = augmentation.draw(12, 40, 32, noise())
        assert drawn.seeds is not None
        found = augmentation(photographs, drawn)
        theirs = v2.Compose([v2.RandAugment(num_ops=2), v2.ColorJitter(brightness=0.5)])
        with torch.random.fork_rng():
            for image, seed, result in zip(photographs, drawn.seeds.tolist(), found, strict=True):
                torch.manual_seed(seed)
                assert torch.equal(theirs(image), result)
        assert len(drawn.seeds.unique()) == 12

    def test_leave_the_global_random_state_alone_and_do_not_follow_it(
        self, photographs: torch.Tensor
    ) -> None:
        def epoch(seed: int, number: int) -> torch.Tensor:
            split = Split(photographs, torch.arange(12))
            loader = make_loader(split, 5, "cpu", seed, transforms=self.WANTED)
            return torch.cat([images for images, _ in pairs(loader.epoch(number))])

        torch.manual_seed(0)
        before = torch.get_rng_state()
        first = epoch(0, 0)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(1)
        assert torch.equal(epoch(0, 0), first)
        assert not torch.equal(epoch(1, 0), first)
        assert not torch.equal(epoch(0, 1), first)

    @pytest.mark.parametrize(
        ("wanted", "message"),
        [
            ({"RandAugmnet": {}}, r"unknown 'RandAugmnet', did you mean 'RandAugment'\?"),
            ({"functional": {}}, "unknown 'functional'"),
            (
                {"RandAugment": {"num_op": 2}},
                r"RandAugment has no argument 'num_op', did you mean 'num_ops'\?",
            ),
            ({"RandAugment": 2}, r"RandAugment needs arguments by name"),
            ({"RandomErasing": {"p": 2}}, "RandomErasing: .*interval"),
            ({"RandomErasing": {"p": 1, "value": "x"}}, "RandomErasing: "),
            ({"RandomCrop": {}}, "RandomCrop: .*size"),
        ],
    )
    def test_misspelt_ones_are_refused(self, wanted: dict[str, object], message: str) -> None:
        with pytest.raises(RequestError, match=f"dataset.transforms: {message}"):
            build_transforms(wanted)

    @pytest.mark.parametrize(
        ("wanted", "message"),
        [
            ({"Resize": {"size": 5}}, r"must return uint8 \[3, 8, 8\] images, got torch.uint8 \[3, 5, 5\]"),
            ({"ToDtype": {"dtype": torch.float32}}, r"got torch.float32"),
            ({"MixUp": {"num_classes": 3}}, "dataset.transforms: "),
        ],
    )
    def test_those_that_do_not_give_images_of_the_kind_are_refused(
        self, wanted: dict[str, object], message: str
    ) -> None:
        with pytest.raises(RequestError, match=message):
            check_transforms(wanted, (3, 8, 8))

    def test_loading_a_dataset_checks_them_before_anything_is_read(self) -> None:
        absent = FolderConfig(name="folder", root="absent", transforms={"RandAugmnet": {}})
        with pytest.raises(RequestError, match=r"dataset.transforms: .* did you mean 'RandAugment'\?"):
            load(absent)
        with pytest.raises(RequestError, match=r"dataset.transforms: must return uint8 \[1, 8, 8\]"):
            load(DigitsConfig(name="digits", transforms={"Grayscale": {"num_output_channels": 3}}))

    def test_no_arguments_at_all(self) -> None:
        wanted = {"RandomHorizontalFlip": None, "TrivialAugmentWide": {}}
        check_transforms(wanted, (1, 8, 8))
        built: Any = build_transforms(wanted)
        assert [type(step).__name__ for step in built.transforms] == list(wanted)


@given(
    n=st.integers(4, 40),
    batch_size=st.integers(4, 13),
    world_size=st.integers(1, 4),
    crop_scale=st.none() | st.just(0.3),
    cutout=st.integers(0, 3),
)
def test_ranks_together_are_the_single_process_bit_by_bit(
    n: int, batch_size: int, world_size: int, crop_scale: float | None, cutout: int
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (n, 3, 9, 7), np.uint8)
    split = Split(torch.from_numpy(pixels), torch.arange(n))

    def loader(rank: int, world_size: int) -> Loader:
        return make_loader(split, batch_size, "cpu", 5, 1, True, crop_scale, None, cutout, rank, world_size)

    single = list(pairs(loader(0, 1).epoch(1)))
    ranks = [list(pairs(loader(rank, world_size).epoch(1))) for rank in range(world_size)]
    assert {len(batches) for batches in ranks} == {len(loader(0, world_size))}
    rest = n % batch_size
    assert len(ranks[0]) == n // batch_size + (rest >= max(2, world_size))
    for step, parts in enumerate(zip(*ranks, strict=True)):
        assert torch.equal(torch.cat([images for images, _ in parts]), single[step][0])
        assert torch.equal(torch.cat([labels for _, labels in parts]), single[step][1])
        sizes = [len(labels) for _, labels in parts]
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= 1
    late = list(pairs(loader(world_size - 1, world_size).epoch(1, start_step=1)))
    for (images, _), (expected, _) in zip(late, ranks[-1][1:], strict=True):
        assert torch.equal(images, expected)


@pytest.mark.parametrize(("batch_size", "rank", "world_size"), [(3, 0, 4), (8, 4, 4), (8, -1, 2)])
def test_ranks_that_cannot_be_are_refused(batch_size: int, rank: int, world_size: int) -> None:
    split = Split(torch.zeros(20, 1, 2, 2, dtype=torch.uint8), torch.arange(20))
    with pytest.raises(ValueError, match="must be"):
        make_loader(split, batch_size, "cpu", 0, rank=rank, world_size=world_size)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_draws_the_same(photographs: torch.Tensor) -> None:
    """Bit by bit, save that a resized pixel on the verge of rounding may differ by one level."""
    augmentation = Augmentation(2, True, 0.2, {"GaussianNoise": {}}, 6)
    drawn = augmentation.draw(12, 40, 32, noise())
    difference = augmentation(photographs.cuda(), drawn).cpu().int() - augmentation(photographs, drawn).int()
    assert difference.abs().max() <= 2
    exact = Augmentation(2, True, None, {"RandAugment": {}}, 6)
    drawn = exact.draw(12, 40, 32, noise())
    assert torch.equal(exact(photographs.cuda(), drawn).cpu(), exact(photographs, drawn))
