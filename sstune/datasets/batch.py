"""A batch, as training, evaluation and attacks see it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sstune.copying import to_device


@dataclass(frozen=True, eq=False)
class Batch:
    """N images, what a network should make of them, and which samples they are.

    Args:
        images: (N, C, H, W) in [0,1], float32, channels last in memory.
        targets: (N,) int64 classes or (N, L) float32, multi-hot, on the device of the images.
        samples: (N,) int64 on the CPU, the index of each in its split. It keys random draws.
    """

    images: Tensor
    targets: Tensor
    samples: Tensor

    def __len__(self) -> int:
        return len(self.samples)

    def with_images(self, images: Tensor) -> Batch:
        """The same samples with other images."""
        return replace(self, images=images)

    def take(self, index: Tensor) -> Batch:
        """The samples at ``index``, (n,) int64 on the CPU."""
        there = to_device(index, self.targets.device)
        return Batch(self.images[there], self.targets[there], self.samples[index])

    def parts(self, n: int) -> Iterator[Batch]:
        """``n`` parts of equal size; the first ones are longer by one where that does not work out."""
        split = (torch.tensor_split(each, n) for each in (self.images, self.targets, self.samples))
        return (Batch(*part) for part in zip(*split, strict=True))

    def chunks(self, size: int) -> Iterator[Batch]:
        """Parts of ``size`` samples, of which the last may be smaller."""
        split = (torch.split(each, size) for each in (self.images, self.targets, self.samples))
        return (Batch(*part) for part in zip(*split, strict=True))
