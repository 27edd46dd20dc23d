"""A batch of images, targets and sample indices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sstune.copying import to_device


@dataclass(frozen=True, eq=False)
class Batch:
    """N images with their targets and sample indices.

    Args:
        images: (N, C, H, W) in [0,1], float32, channels last in memory.
        targets: (N,) int64 classes or (N, L) float32, multi-hot, on the images' device.
        samples: (N,) int64 on the CPU, indices in the split; they key random draws.
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
        """Split into ``n`` parts whose sizes differ by at most one, larger ones first."""
        split = (torch.tensor_split(each, n) for each in (self.images, self.targets, self.samples))
        return (Batch(*part) for part in zip(*split, strict=True))

    def chunks(self, size: int) -> Iterator[Batch]:
        """Split into parts of ``size`` samples; the last may be smaller."""
        split = (torch.split(each, size) for each in (self.images, self.targets, self.samples))
        return (Batch(*part) for part in zip(*split, strict=True))
