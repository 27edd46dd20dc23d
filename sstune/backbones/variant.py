"""Variants of convolutional networks: as published for ImageNet, or as usual for small images."""

from __future__ import annotations

from sstune.backbones.registry import Shape
from sstune.schema import ConvNetConfig, RequestError, Variant

SMALLEST_IMAGENET = 64  # pixels a side; larger images get variant imagenet
WITH_FEATURES = ("alexnet", "vgg16", "vgg16_bn")  # whose fully connected layers can be left out


def chosen(config: ConvNetConfig, shape: Shape) -> Variant:
    """The configured variant, or for auto the one for a backbone input of ``shape``.

    Raises:
        RequestError: variant features of a network whose head is its only fully connected layer.
    """
    if config.variant is Variant.features and config.name not in WITH_FEATURES:
        raise RequestError(
            f"backbone.variant: features is for {', '.join(WITH_FEATURES)}, not for {config.name}"
        )
    if config.variant is not Variant.auto:
        return config.variant
    large = min(shape[1:]) >= SMALLEST_IMAGENET
    return Variant.imagenet if config.pretrained or large else Variant.cifar


def require(config: ConvNetConfig, shape: Shape, smallest: int) -> None:
    """Check that images have at least ``smallest`` pixels a side.

    Raises:
        RequestError: they are smaller.
    """
    if min(shape[1:]) < smallest:
        raise RequestError(
            f"backbone.name: {config.name} of variant {chosen(config, shape)} needs {smallest}x{smallest} "
            f"images or larger, not {shape[1]}x{shape[2]}; backbone.input_size={smallest} resizes them"
        )
