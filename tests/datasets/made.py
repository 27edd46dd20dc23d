"""Loaders made in a line, and batches as pairs of images and labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sstune.datasets import Augmentation, Batch, Loader, Shard, Split


def make_loader(
    split: Split,
    batch_size: int,
    device: torch.device | str = "cpu",
    seed: int = 0,
    crop_padding: int = 0,
    flip: bool = False,
    crop_scale: float | None = None,
    transforms: Mapping[str, Any] | None = None,
    cutout: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Loader:
    augmentation = Augmentation(crop_padding, flip, crop_scale, transforms or {}, cutout)
    return Loader(split, batch_size, device, seed, augmentation, Shard(rank, world_size))


def pairs(batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in batches:
        yield batch.images, batch.targets
