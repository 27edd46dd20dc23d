"""Resizing of images inside the network."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sstune.backbones.separable import repeatable
from sstune.schema import Interpolation


def resize(images: Tensor, size: tuple[int, int], interpolation: Interpolation) -> Tensor:
    """Images in [0,1], (N, C, H, W) -> (N, C, *size), again in [0,1].

    Antialiased, as in Pillow; bicubic uses Pillow's kernel (a = -1/2), with which published weights were
    evaluated, instead of PyTorch's (a = -3/4).
    """

    def interpolated(images: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(images, size, mode=interpolation.value, antialias=True)

    resized = repeatable(interpolated, images, size)
    # bicubic interpolation overshoots at edges
    return resized.clamp(0, 1) if interpolation is Interpolation.bicubic else resized


def centre(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The centre of images, (N, C, H, W) -> (N, C, *size)."""
    top, left = ((images.shape[axis] - side) // 2 for axis, side in ((2, size[0]), (3, size[1])))
    return images[:, :, top : top + size[0], left : left + size[1]]
