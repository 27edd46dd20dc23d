"""Batches from images that stay on the device as uint8: shuffled and augmented for training, or in order.

Order and augmentation follow from (seed, epoch, step) alone and leave the global random state untouched, so
that training resumed in the middle of an epoch sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from sstune.datasets.splits import Split, permutation
from sstune.seeding import seed_from


class Loader:
    """Shuffled, augmented batches of a split, which is moved to ``device`` once.

    A last, smaller batch is kept, unless it has exactly one sample: batch normalisation cannot train on
    that, so those epochs leave out the one sample that their order puts last. ``crop_padding`` > 0 crops at
    random from images with that many zeros on each side, ``flip`` mirrors half of them left to right.

    Raises:
        ValueError: fewer than two samples, or ``batch_size`` below 1.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        device: torch.device | str,
        seed: int,
        crop_padding: int = 0,
        flip: bool = False,
    ) -> None:
        if len(split) < 2:
            raise ValueError(f"cannot train on {len(split)} sample(s), at least 2 are needed")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.split = split.to(device)
        self.batch_size = batch_size
        self.seed = seed
        self.crop_padding = crop_padding
        self.flip = flip

    def __len__(self) -> int:
        """Steps per epoch."""
        full, rest = divmod(len(self.split), self.batch_size)
        return full + (rest > 1)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch from ``start_step`` on, bit-equal to those of the whole epoch.

        Yields:
            Images float32 [B, C, H, W] in [0, 1], channels last in memory, and labels int64 [B].
        """
        split = self.split
        order = permutation(len(split), seed_from(self.seed, "order", epoch)).to(split.labels.device)
        for step in range(start_step, len(self)):
            index = order[step * self.batch_size : (step + 1) * self.batch_size]
            images = split.images[index]
            if self.crop_padding or self.flip:
                noise = torch.Generator().manual_seed(seed_from(self.seed, "augmentation", epoch, step))
                images = augment(images, self.crop_padding, self.flip, noise)
            yield _to_float(images), split.labels[index]


def augment(images: Tensor, crop_padding: int, flip: bool, noise: torch.Generator) -> Tensor:
    """Crop each image at its own random offset out of its zero-padded self, then mirror it or not.

    Args:
        images: [B, C, H, W] of any type and device; the result has the same shape.
        crop_padding: zeros on each side; offsets are uniform in 0..2 * crop_padding, across and down.
        flip: mirror each image left to right with probability 1/2.
        noise: a generator on the CPU; what it draws does not depend on the images' device.
    """
    n, _, height, width = images.shape
    top, left = torch.randint(2 * crop_padding + 1, (2, n, 1), generator=noise)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    if flip:
        mirrored = torch.rand(n, 1, generator=noise) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    rows, columns = rows.to(images.device), columns.to(images.device)
    padded = F.pad(images, [crop_padding] * 4)
    each = torch.arange(n, device=images.device)
    pixels = padded[each[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # [B, H, W, C]
    return pixels.permute(0, 3, 1, 2)


def batches(split: Split, batch_size: int, device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
    """Every sample once and in order, for evaluation; yields what :meth:`Loader.epoch` does."""
    for start in range(0, len(split), batch_size):
        chosen = slice(start, start + batch_size)
        yield _to_float(split.images[chosen].to(device)), split.labels[chosen].to(device)


def _to_float(images: Tensor) -> Tensor:
    return images.to(torch.float32, memory_format=torch.channels_last).div_(255)
