"""Networks as published for ImageNet, or as is customary for small images."""

from __future__ import annotations

from sstune.backbones.registry import Shape
from sstune.schema import ConvNetConfig, RequestError, Variant

SMALLEST_IMAGENET = 64  # pixels a side from which images count as large


def chosen(config: ConvNetConfig, shape: Shape) -> Variant:
    """The variant for images that enter the backbone with ``shape``; never auto."""
    if config.variant is not Variant.auto:
        return config.variant
    large = min(shape[1:]) >= SMALLEST_IMAGENET
    return Variant.imagenet if config.pretrained or large else Variant.cifar


def require(config: ConvNetConfig, shape: Shape, smallest: int) -> None:
    """Refuse images with a side below ``smallest`` pixels.

    Raises:
        RequestError: naming the backbone and that size.
    """
    if min(shape[1:]) < smallest:
        raise RequestError(
            f"backbone.name: {config.name} of variant {chosen(config, shape)} needs {smallest}x{smallest} "
            f"images at least, not {shape[1]}x{shape[2]}; backbone.input_size={smallest} would resize them"
        )
