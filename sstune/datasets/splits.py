"""Train, validation and test images, and how one is split off another."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sstune.schema import RequestError

SPLIT_SEED = 0
"""Seed of every split made here, whatever the run's own seed.

A fine-tuned run starts from an ancestor's weights, possibly trained with another seed: were the splits to
follow the run's seed, images the ancestor was trained on would be validation or test images of its
descendants. It also pairs runs of different seeds on the same test images.
"""


def permutation(n: int, seed: int) -> Tensor:
    """A permutation of 0..n-1 (int64) that follows from ``seed`` (>= 0) alone.

    Drawn by NumPy's RandomState, whose stream is frozen: the same on every machine and in every version.
    """
    stream = np.random.RandomState([seed % 2**32, seed >> 32])
    return torch.from_numpy(stream.permutation(n).astype(np.int64))


@dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 [N, C, H, W] and labels int64 [N]."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(f"images: expected uint8 [N, C, H, W], got {_described(self.images)}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"labels: expected int64 [N] of the images, got {_described(self.labels)}")

    def __len__(self) -> int:
        return len(self.labels)

    @functools.cached_property
    def digest(self) -> str:
        """sha256 (hex) of shape, images and labels; the same on every device."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        for tensor in (self.images, self.labels):
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> Split:
        """The same split with its tensors on ``device``."""
        return Split(self.images.to(device), self.labels.to(device))

    def take(self, index: Tensor) -> Split:
        """The samples at ``index`` (int64 [n]), in that order."""
        index = index.to(self.labels.device)
        return Split(self.images[index], self.labels[index])

    def sample(self, n: int | None, seed: int) -> tuple[Split, Tensor]:
        """``n`` samples drawn without replacement, the same for the same ``seed``, in the split's order.

        A larger ``n`` contains a smaller one's samples. ``n`` None, or as large as the split, is all of it.

        Returns:
            The sub-split, and each sample's position in this split (int64 [n], ascending, on the CPU).

        Raises:
            ValueError: ``n`` below 1.
        """
        if n is not None and n < 1:
            raise ValueError(f"cannot sample {n} images")
        if n is None or n >= len(self):
            return self, torch.arange(len(self))
        index = permutation(len(self), seed)[:n].sort().values
        return self.take(index), index


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} {[*tensor.shape]}"


@dataclass(frozen=True, eq=False)
class Splits:
    """Three splits that share no sample, and the classes' names by label."""

    train: Split
    val: Split
    test: Split
    classes: list[str]

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return self.train.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.train.images.shape[2], self.train.images.shape[3]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self.channels, *self.image_size

    @property
    def n_classes(self) -> int:
        return len(self.classes)


def split_off(split: Split, fraction: float, key: str) -> tuple[Split, Split]:
    """Split a random ``fraction`` off, stratified by label; seeded by ``SPLIT_SEED``, both parts in order.

    Class quotas are rounded by the largest remainder, so that the parts' sizes are exact, and leave at least
    one sample of each class behind.

    Returns:
        What is left, and what was split off.

    Raises:
        RequestError: one of the two would be empty; names ``key``, the configuration key of ``fraction``.
    """
    counts = torch.bincount(split.labels)
    exact = counts * fraction
    quota = exact.floor().long()
    rounded_up = (exact - quota).argsort(descending=True, stable=True)
    quota[rounded_up[: round(len(split) * fraction) - int(quota.sum())]] += 1
    quota = quota.minimum((counts - 1).clamp(min=0))

    order = permutation(len(split), SPLIT_SEED)
    shuffled = split.labels[order]
    chosen = torch.zeros(len(split), dtype=torch.bool)
    for label, n in enumerate(quota.tolist()):
        chosen[order[shuffled == label][:n]] = True
    if not chosen.any() or chosen.all():
        raise RequestError(f"{key}: {fraction:g} of {len(split)} images leaves no image on one side")
    return split.take((~chosen).nonzero()[:, 0]), split.take(chosen.nonzero()[:, 0])
