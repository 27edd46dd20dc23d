"""Batches for training, shuffled and augmented, or in order for evaluation.

Small images stay on the device as uint8 and are augmented there; files are read by worker processes. Order
and augmentation follow from (seed, epoch, step) alone, for files from (seed, epoch, position), and leave the
global random state untouched, so that training resumed in the middle of an epoch sees what an uninterrupted
one would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sstune.copying import to_device
from sstune.datasets.augmentation import Augmentation
from sstune.datasets.batch import Batch
from sstune.datasets.files import Change, ImageFiles, stream
from sstune.datasets.splits import Split, permutation
from sstune.seeding import seed_from


@dataclass(frozen=True)
class Shard:
    """Of ``size`` processes that share each batch, the one numbered ``rank`` (from 0).

    Its part is contiguous, and parts differ in size by one at most: together they are, bit by bit, what a
    single process would get.

    Raises:
        ValueError: ``rank`` is none of 0 to ``size`` - 1.
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
    """Shuffled, augmented batches of a split, which is moved to ``device`` once unless it is of files.

    A last, smaller batch is kept, unless it is of one sample, on which batch normalisation cannot train, or
    of fewer than there are processes: those epochs leave out the samples that their order puts last.

    Args:
        split: at least two samples.
        batch_size: images per step, of all processes together.
        shard: which part of each batch this process gets.

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
            read = stream(images, shares, self.device, Change(self.augmentation, self.seed, epoch))
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
        """This process's images, changed by its part of what is drawn for the whole batch of ``n``."""
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
