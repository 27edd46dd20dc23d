from __future__ import annotations

import pickle

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made import make_loader, pairs

from sstune.datasets.augmentation import Augmentation
from sstune.datasets.loader import batches
from sstune.datasets.splits import Split


def noise_split(n: int, channels: int = 3, height: int = 6, width: int = 5) -> Split:
    """Random pixels 1..255, so that padding (0) shows; the label is the position."""
    pixels = np.random.default_rng(0).integers(1, 256, (n, channels, height, width), np.uint8)
    return Split(torch.from_numpy(pixels), torch.arange(n))


class TestLoader:
    @given(n=st.integers(2, 40), batch_size=st.integers(1, 45), epoch=st.integers(0, 5))
    def test_an_epoch_has_every_sample_once(self, n: int, batch_size: int, epoch: int) -> None:
        split = noise_split(n, 1, 2, 2)
        loader = make_loader(split, batch_size, "cpu", seed=3)
        seen = list(pairs(loader.epoch(epoch)))
        labels = torch.cat([labels for _, labels in seen])
        left_out = 1 if batch_size > 1 and n % batch_size == 1 else 0
        assert len(seen) == len(loader)
        assert len(labels) == len(labels.unique()) == n - left_out
        assert all(len(images) == len(labels) for images, labels in seen)
        assert all(len(labels) == batch_size for _, labels in seen[:-1])
        assert min(len(labels) for _, labels in seen) > 1 or batch_size == 1
        pixels = torch.cat([images for images, _ in seen])
        expected = split.images.numpy()[labels.numpy()].astype(np.float32) / np.float32(255)
        assert np.array_equal(pixels.numpy(), expected)

    def test_the_sample_left_out_changes_from_epoch_to_epoch(self) -> None:
        loader = make_loader(noise_split(9), 4, "cpu", seed=0)
        seen = [
            {int(label) for _, labels in pairs(loader.epoch(epoch)) for label in labels}
            for epoch in range(30)
        ]
        assert all(len(labels) == 8 for labels in seen)
        assert set.union(*seen) == set(range(9))
        assert len({frozenset(labels) for labels in seen}) > 3

    def test_images_are_float32_in_0_1_and_channels_last(self) -> None:
        loader = make_loader(noise_split(8), 4, "cpu", seed=0, crop_padding=2, flip=True)
        for images, labels in [*pairs(loader.epoch(0)), *pairs(batches(loader.split, 4, "cpu"))]:
            assert images.shape == (4, 3, 6, 5)
            assert images.dtype == torch.float32
            assert labels.dtype == torch.int64
            assert images.is_contiguous(memory_format=torch.channels_last)
            assert images.min() >= 0
            assert images.max() <= 1

    @given(
        n=st.integers(2, 30),
        batch_size=st.integers(1, 9),
        start=st.integers(0, 30),
        crop_padding=st.integers(0, 3),
        flip=st.booleans(),
    )
    def test_starting_late_gives_the_rest_of_the_epoch_bit_by_bit(
        self, n: int, batch_size: int, start: int, crop_padding: int, flip: bool
    ) -> None:
        make = lambda: make_loader(noise_split(n), batch_size, "cpu", 7, crop_padding, flip)  # noqa: E731
        whole = list(pairs(make().epoch(2)))
        late = list(pairs(make().epoch(2, start_step=start)))
        assert len(late) == max(len(whole) - start, 0)
        for (images, labels), (expected, expected_labels) in zip(late, whole[start:], strict=True):
            assert torch.equal(images, expected)
            assert torch.equal(labels, expected_labels)

    def test_order_and_augmentation_follow_seed_and_epoch_and_differ_between_them(self) -> None:
        def first(seed: int, epoch: int) -> torch.Tensor:
            return next(pairs(make_loader(noise_split(40), 40, "cpu", seed, 2, True).epoch(epoch)))[0]

        assert torch.equal(first(0, 0), first(0, 0))
        assert not torch.equal(first(0, 0), first(0, 1))
        assert not torch.equal(first(0, 0), first(1, 0))

    def test_orders_never_change(self) -> None:
        """Resuming a run after an upgrade rests on them."""
        orders = [
            torch.cat([y for _, y in pairs(make_loader(noise_split(6), 4, "cpu", 1).epoch(e))])
            for e in (0, 7)
        ]
        assert [order.tolist() for order in orders] == [[3, 5, 1, 4, 2, 0], [5, 0, 3, 1, 2, 4]]

    def test_two_steps_draw_different_noise(self) -> None:
        same = Split(torch.arange(1, 26).byte().reshape(1, 1, 5, 5).expand(16, 1, 5, 5), torch.arange(16))
        (one, _), (two, _) = pairs(make_loader(same, 8, "cpu", 0, crop_padding=2).epoch(0))
        assert not torch.equal(one, two)

    def test_the_global_random_state_is_neither_read_nor_written(self) -> None:
        def epoch() -> torch.Tensor:
            return torch.cat(
                [images for images, _ in pairs(make_loader(noise_split(9), 4, "cpu", 0, 1, True).epoch(0))]
            )

        torch.manual_seed(0)
        np.random.seed(0)
        before, numpy_before = torch.get_rng_state(), pickle.dumps(np.random.get_state())
        first = epoch()
        assert torch.equal(torch.get_rng_state(), before)
        assert pickle.dumps(np.random.get_state()) == numpy_before
        torch.manual_seed(1)
        np.random.seed(1)
        assert torch.equal(epoch(), first)

    def test_the_split_itself_is_never_changed(self) -> None:
        split = noise_split(8)
        digest = split.digest
        for _ in pairs(make_loader(split, 4, "cpu", 0, 1, True).epoch(0)):
            pass
        assert Split(split.images, split.targets).digest == digest

    @pytest.mark.parametrize(
        ("n", "batch_size", "message"), [(1, 4, "at least 2"), (0, 4, "at"), (4, 0, "bat")]
    )
    def test_refuses(self, n: int, batch_size: int, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            make_loader(noise_split(n), batch_size, "cpu", seed=0)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_a_gpu_sees_the_same_batches(self) -> None:
        split = noise_split(50)
        ours = pairs(make_loader(split, 8, "cpu", 0, 2, True).epoch(1))
        for (images, labels), (expected, expected_labels) in zip(
            pairs(make_loader(split, 8, "cuda", 0, 2, True).epoch(1)), ours, strict=True
        ):
            assert images.is_cuda
            assert labels.is_cuda
            assert images.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal((images.cpu() * 255).round(), (expected * 255).round())
            assert torch.equal(labels.cpu(), expected_labels)
        assert split.to("cuda").digest == split.digest


def every_crop(image: npt.NDArray[np.uint8], padding: int) -> dict[bytes, tuple[int, int, bool]]:
    """All crops of a zero-padded image, mirrored and not, pixel by pixel: bytes -> (top, left, mirrored)."""
    _, height, width = image.shape
    crops = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = np.zeros_like(image)
            for y in range(height):
                for x in range(width):
                    source_y, source_x = y + top - padding, x + left - padding
                    if 0 <= source_y < height and 0 <= source_x < width:
                        crop[:, y, x] = image[:, source_y, source_x]
            crops[crop.tobytes()] = (top, left, False)
            mirrored = np.stack([crop[:, :, width - 1 - x] for x in range(width)], axis=2)
            crops[mirrored.tobytes()] = (top, left, True)
    return crops


def augment(images: torch.Tensor, padding: int, flip: bool, noise: torch.Generator) -> torch.Tensor:
    augmentation = Augmentation(padding, flip)
    return augmentation(images, augmentation.draw(len(images), *images.shape[2:], noise))


class TestAugment:
    @given(
        n=st.integers(1, 6),
        channels=st.sampled_from([1, 3]),
        height=st.integers(1, 7),
        width=st.integers(2, 7),
        padding=st.integers(0, 3),
        flip=st.booleans(),
        seed=st.integers(0, 2**63 - 1),
    )
    def test_every_image_is_a_crop_of_its_padded_self(
        self, n: int, channels: int, height: int, width: int, padding: int, flip: bool, seed: int
    ) -> None:
        images = noise_split(n, channels, height, width).images
        augmented = augment(images, padding, flip, torch.Generator().manual_seed(seed))
        assert augmented.shape == images.shape
        assert augmented.dtype == torch.uint8
        for image, result in zip(images.numpy(), augmented, strict=True):
            crops = every_crop(image, padding)
            found = crops.get(result.contiguous().numpy().tobytes())
            assert found is not None
            assert flip or not found[2] or len(crops) < 2 * (2 * padding + 1) ** 2

    def test_offsets_and_flips_are_uniform_and_independent_between_images(self) -> None:
        image = noise_split(1).images
        augmented = augment(image.expand(9000, -1, -1, -1), 1, True, torch.Generator().manual_seed(0))
        crops = every_crop(image[0].numpy(), 1)
        assert len(crops) == 18
        counts = dict.fromkeys(crops.values(), 0)
        for result in augmented:
            counts[crops[result.contiguous().numpy().tobytes()]] += 1
        chi_squared = sum((count - 500) ** 2 / 500 for count in counts.values())
        assert chi_squared < 40.8  # 17 degrees of freedom: exceeded once in 1000 seeds, and the seed is fixed

    def test_nothing_asked_for_is_nothing_done(self) -> None:
        images = noise_split(5).images
        assert torch.equal(augment(images, 0, False, torch.Generator().manual_seed(0)), images)


@given(n=st.integers(0, 20), batch_size=st.integers(1, 25))
def test_batches_are_every_sample_in_order(n: int, batch_size: int) -> None:
    split = noise_split(n, 1, 3, 2)
    found = list(pairs(batches(split, batch_size, "cpu")))
    assert [len(labels) for _, labels in found] == [min(batch_size, n - i) for i in range(0, n, batch_size)]
    assert [int(label) for _, labels in found for label in labels] == list(range(n))
    for images, labels in found:
        expected = split.images.numpy()[labels.numpy()].astype(np.float32) / np.float32(255)
        assert np.array_equal(images.numpy(), expected)
