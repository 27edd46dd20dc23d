"""Preprocessing that published weights expect of their images."""

from __future__ import annotations

from dataclasses import dataclass

from sstune.schema import Interpolation


@dataclass(frozen=True)
class Preprocessing:
    """Evaluation preprocessing of published weights, from their metadata.

    Args:
        mean, std: of each channel, for images in [0,1].
        size: (height, width) in pixels of the centre crop that enters the network.
        crop_pct: the image is resized to cover ``size / crop_pct`` before it is cropped.
        interpolation: how the image is resized.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    crop_pct: float
    interpolation: Interpolation
