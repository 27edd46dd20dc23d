"""Numbers that look random and depend on an image's pixels only, whatever the batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

GRID = 2**20  # pixels are compared on a grid of this step's inverse, so that float32 and float64 agree
_FACTORS = (0x5851F42D4C957F2D, 0x2545F4914F6CDD1D)  # odd; products wrap around in int64


def _mixed(numbers: Tensor) -> Tensor:
    """A permutation of int64 that mixes all bits."""
    for shift, factor in zip((29, 32), _FACTORS, strict=True):
        numbers = (numbers ^ (numbers >> shift)) * factor
    return numbers ^ (numbers >> 30)


def keys(images: Tensor) -> Tensor:
    """A hash of each image, (N,) int64; exact integer sums, so that no batch size changes it."""
    pixels = (images.detach().double() * GRID).round().long().flatten(1)
    place = torch.arange(pixels.shape[1], device=images.device)
    return _mixed(_mixed(pixels * GRID + place).sum(1))


def uniform(keys: Tensor, shape: Sequence[int], like: Tensor) -> Tensor:
    """Numbers uniform in [0,1), (N, *shape) of the type of ``like``; for each key, (N,), its own."""
    place = _mixed(torch.arange(math.prod(shape), device=keys.device))
    bits = _mixed(keys[:, None] + place) & (2**52 - 1)
    return (bits.double() / 2**52).to(like).reshape(-1, *shape)
