"""Batches for training, shuffled and augmented, or in order for evaluation.

Images in memory stay on the device as uint8 and are augmented there; files are read by worker processes.
Order and augmentation are seeded by (seed, epoch, step), for files by (seed, epoch, position), and do not use
the global random state. So training that resumes within an epoch sees the same batches as without a pause.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sstune.copying import to_device
from sstune.datasets.augmentation import Augmentation
from sstune.datasets.batch import Batch
from sstune.datasets.files import EpochAugmentation, ImageFiles, stream
from sstune.datasets.splits import Split, permutation
from sstune.seeding import seed_from


@dataclass(frozen=True)
class Shard:
    """The part of each batch for process ``rank`` (from 0) of ``size`` processes.

    Parts are contiguous and differ in size by at most one; concatenated they equal, bit by bit, the batch of
    a single process.

    Raises:
        ValueError: ``rank`` is not in 0..``size`` - 1.
    """

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank must be one of 0..{self.size - 1}, not {self.rank}")

    def of(self, n: int) -> slice:
        """This process's part of a batch of ``n``."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)


class Loader:
    """Shuffled, augmented batches of a split, which is moved to ``device`` once unless it is streamed.

    A smaller last batch is kept, unless it has one sample, on which batch normalisation cannot train, or
    fewer samples than there are processes: then an epoch omits the last samples of its order.

    Args:
        split: at least two samples.
        batch_size: images per step, of all processes together.
        shard: the part of each batch for this process.

    Raises:
        ValueError: fewer than two samples, or ``batch_size`` below 1 or below the number of processes.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        device: torch.device | str,
        seed: int,
        augmentation: Augmentation | None = None,
        shard: Shard | None = None,
    ) -> None:
        self.shard = shard or Shard()
        if len(split) < 2:
            raise ValueError(f"cannot train on {len(split)} sample(s), at least 2 are needed")
        if batch_size < self.shard.size:
            raise ValueError(f"batch_size must be at least {self.shard.size}, not {batch_size}")
        self.split = split if isinstance(split.images, ImageFiles) else split.to(device)
        self.device = device
        self.batch_size = batch_size
        self.seed = seed
        self.augmentation = augmentation or Augmentation()

    def __len__(self) -> int:
        """Steps per epoch, the same for all processes."""
        full, rest = divmod(len(self.split), self.batch_size)
        return full + (rest >= max(2, self.shard.size))

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from ``start_step`` on, bit-equal to those of the whole epoch.

        Raises:
            RequestError: a file cannot be read or decoded.
        """
        order = permutation(len(self.split), seed_from(self.seed, "order", epoch))
        steps = range(start_step, len(self))
        batches = [order[step * self.batch_size : (step + 1) * self.batch_size] for step in steps]
        shares = [batch[self.shard.of(len(batch))] for batch in batches]
        images, targets = self.split.images, self.split.targets
        if isinstance(images, ImageFiles):
            augment = EpochAugmentation(self.augmentation, self.seed, epoch)
            read = stream(images, shares, self.device, augment)
            for share, pixels in zip(shares, read, strict=True):
                yield Batch(_to_float(pixels), to_device(targets[share], self.device), share)
            return
        on_device = to_device(order, targets.device)  # one copy for all steps
        for step, batch, share in zip(steps, batches, shares, strict=True):
            first = step * self.batch_size + self.shard.of(len(batch)).start
            index = on_device[first : first + len(share)]
            pixels = self._augmented(images[index], len(batch), epoch, step)
            yield Batch(_to_float(pixels), targets[index], share)

    def _augmented(self, images: Tensor, n: int, epoch: int, step: int) -> Tensor:
        """Augment this process's images with its part of the numbers drawn for the batch of ``n``."""
        if not self.augmentation:
            return images
        noise = torch.Generator().manual_seed(seed_from(self.seed, "augmentation", epoch, step))
        drawn = self.augmentation.draw(n, images.shape[2], images.shape[3], noise)
        return self.augmentation(images, drawn.part(self.shard.of(n)))


def batches(split: Split, batch_size: int, device: torch.device | str) -> Iterator[Batch]:
    """Every sample once and in order, for evaluation.

    Raises:
        RequestError: a file cannot be read or decoded.
    """
    positions = torch.arange(len(split))
    parts = [slice(start, start + batch_size) for start in range(0, len(split), batch_size)]
    images = split.images
    read: Iterator[Tensor]
    if isinstance(images, ImageFiles):
        read = stream(images, [positions[part] for part in parts], device)
    else:
        read = (to_device(images[part], device) for part in parts)
    for part, pixels in zip(parts, read, strict=True):
        yield Batch(_to_float(pixels), to_device(split.targets[part], device), positions[part])


def _to_float(images: Tensor) -> Tensor:
    return images.to(torch.float32, memory_format=torch.channels_last).div_(255)
