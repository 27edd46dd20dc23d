"""Batches for training, shuffled and augmented, or in order for evaluation.

Small images stay on the device as uint8 and are augmented there; files are read by worker processes. Order
and augmentation follow from (seed, epoch, step) alone, for files from (seed, epoch, position), and leave the
global random state untouched, so that training resumed in the middle of an epoch sees what an uninterrupted
one would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sstune.copying import to_device
from sstune.datasets.augmentation import Augmentation
from sstune.datasets.files import Change, ImageFiles, stream
from sstune.datasets.splits import Split, permutation
from sstune.seeding import seed_from


class Loader:
    """Shuffled, augmented batches of a split, which is moved to ``device`` once unless it is of files.

    A last, smaller batch is kept, unless it is of one sample, on which batch normalisation cannot train, or
    of fewer than there are processes: those epochs leave out the samples that their order puts last.

    Args:
        split: at least two samples.
        batch_size: images per step, of all processes together.
        crop_padding, flip, crop_scale, transforms, cutout: see :class:`Augmentation`.
        rank, world_size: of ``world_size`` processes that share each batch, this one gets the ``rank``-th
            part of it (0-based, contiguous, parts differ in size by one at most): together, bit by bit, what
            a single process would get.

    Raises:
        ValueError: fewer than two samples, or ``batch_size`` below 1 or below ``world_size``.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        device: torch.device | str,
        seed: int,
        crop_padding: int = 0,
        flip: bool = False,
        crop_scale: float | None = None,
        transforms: Mapping[str, Any] | None = None,
        cutout: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if len(split) < 2:
            raise ValueError(f"cannot train on {len(split)} sample(s), at least 2 are needed")
        if batch_size < world_size or batch_size < 1:
            raise ValueError(f"batch_size must be at least {max(world_size, 1)}, not {batch_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be one of 0..{world_size - 1}, not {rank}")
        self.split = split if isinstance(split.images, ImageFiles) else split.to(device)
        self.device = device
        self.batch_size = batch_size
        self.seed = seed
        self.augmentation = Augmentation(crop_padding, flip, crop_scale, transforms or {}, cutout)
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        """Steps per epoch, the same for all processes."""
        full, rest = divmod(len(self.split), self.batch_size)
        return full + (rest >= max(2, self.world_size))

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch from ``start_step`` on, bit-equal to those of the whole epoch.

        Yields:
            Images float32 [B, C, H, W] in [0, 1], channels last in memory, and labels int64 [B].

        Raises:
            RequestError: a file cannot be read or decoded.
        """
        order = permutation(len(self.split), seed_from(self.seed, "order", epoch))
        order = to_device(order, self.split.labels.device)
        steps = range(start_step, len(self))
        batches = [order[step * self.batch_size : (step + 1) * self.batch_size] for step in steps]
        images = self.split.images
        if isinstance(images, ImageFiles):
            parts = [batch[self.share(len(batch))] for batch in batches]
            read = stream(images, parts, self.device, Change(self.augmentation, self.seed, epoch))
            for part, pixels in zip(parts, read, strict=True):
                yield _to_float(pixels), to_device(self.split.labels[part], self.device)
            return
        for step, batch in zip(steps, batches, strict=True):
            part = batch[self.share(len(batch))]
            yield _to_float(self._augmented(images[part], len(batch), epoch, step)), self.split.labels[part]

    def share(self, n: int) -> slice:
        """This process's part of a batch of ``n``."""
        return slice(n * self.rank // self.world_size, n * (self.rank + 1) // self.world_size)

    def _augmented(self, images: Tensor, n: int, epoch: int, step: int) -> Tensor:
        """This process's images, changed by its part of what is drawn for the whole batch of ``n``."""
        if not self.augmentation:
            return images
        noise = torch.Generator().manual_seed(seed_from(self.seed, "augmentation", epoch, step))
        drawn = self.augmentation.draw(n, images.shape[2], images.shape[3], noise)
        return self.augmentation(images, drawn.part(self.share(n)))


def batches(split: Split, batch_size: int, device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
    """Every sample once and in order, for evaluation; yields what :meth:`Loader.epoch` does.

    Raises:
        RequestError: a file cannot be read or decoded.
    """
    images, labels = split.images, split.labels
    chosen = [slice(start, start + batch_size) for start in range(0, len(split), batch_size)]
    if isinstance(images, ImageFiles):
        positions = torch.arange(len(split))
        for part, pixels in zip(
            chosen, stream(images, [positions[part] for part in chosen], device), strict=True
        ):
            yield _to_float(pixels), to_device(labels[part], device)
        return
    for part in chosen:
        yield _to_float(to_device(images[part], device)), to_device(labels[part], device)


def _to_float(images: Tensor) -> Tensor:
    return images.to(torch.float32, memory_format=torch.channels_last).div_(255)
