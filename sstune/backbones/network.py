"""The one shape that all networks have: resizing and normalisation first, then the backbone with its head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from sstune.backbones import from_timm
from sstune.backbones.images import resize
from sstune.backbones.registry import BACKBONES, PREPROCESSINGS, Backbone, Builder, Shape
from sstune.backbones.separable import make_repeatable
from sstune.preprocessing import Preprocessing
from sstune.schema import BackboneConfig, Interpolation, PretrainedConfig, RequestError, TimmConfig


class Network(nn.Module):
    """What is trained and attacked: images in [0,1], (N, C, H, W) -> outputs, (N, outputs).

    Resizing (to ``size``, None: not at all) and normalisation are its first layers, so an attack moves in
    the dataset's pixel space. Their constants belong to the configuration and are not in the state dict.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        mean: Sequence[float],
        std: Sequence[float],
        size: tuple[int, int] | None = None,
        interpolation: Interpolation = Interpolation.bilinear,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1), persistent=False)
        self.size = size
        self.interpolation = interpolation
        self.backbone = backbone.module
        make_repeatable(self.backbone)
        self.aliases = {"head": backbone.head, "stem": backbone.stem}
        self.notes = list(backbone.notes)
        self.settled = dict(backbone.settled)

    def prepare(self, images: Tensor) -> Tensor:
        """What enters the backbone, (N, C, *size)."""
        if self.size is not None:
            images = resize(images, self.size, self.interpolation)
        return (images - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.backbone(self.prepare(images))
        return outputs


def preprocessing(config: BackboneConfig) -> Preprocessing | None:
    """What the published weights of ``config`` expect, None if it asks for none; loads no weights.

    ``input_size`` takes the place of the weights' size.

    Raises:
        RequestError: unknown name, or there are no weights of that name.
    """
    if not isinstance(config, PretrainedConfig) or not config.pretrained:
        return None
    of_timm = isinstance(config, TimmConfig)
    published = from_timm.preprocessing(config.name) if of_timm else PREPROCESSINGS[config.name](config)
    if config.input_size is not None:
        published = replace(published, size=(config.input_size, config.input_size))
    return published


def build(
    config: BackboneConfig,
    shape: Shape,
    outputs: int,
    mean: Sequence[float],
    std: Sequence[float],
    weights: bool = True,
) -> Network:
    """The network that ``config`` names, for images of ``shape`` (channels, height, width).

    Args:
        mean: of the dataset, used unless the backbone is pre-trained, as is ``std``.
        weights: whether to load the published weights of a pre-trained backbone. Without, the network is the
            same but for its random weights, which then come from a run or a file.

    Raises:
        RequestError: unknown name, constants that do not fit the number of channels, images of a size that
            the backbone cannot take, or published weights that cannot be had.
    """
    channels, *image_size = shape
    if len(mean) not in (1, channels):
        raise RequestError(f"dataset.mean: has {len(mean)} values, the images have {channels} channels")
    published = preprocessing(config)
    size = _entering(config, shape, published)
    if not isinstance(config, PretrainedConfig):
        return Network(BACKBONES[config.name](config, shape, outputs), mean, std)
    builder: Builder = from_timm.any_model if isinstance(config, TimmConfig) else BACKBONES[config.name]
    backbone = builder(config, (channels, *size), outputs, load=config.pretrained and weights)
    notes = []
    interpolation = Interpolation.bilinear
    if published is not None:
        mean, std = _constants(published, channels)
        interpolation = published.interpolation
        notes.append(f"normalised as the weights expect: mean {_listed(mean)}, std {_listed(std)}")
    if size != tuple(image_size):
        notes.append(f"resized: {_by(shape[1:])} -> {_by(size)}, {interpolation}")
    network = Network(backbone, mean, std, size if size != tuple(image_size) else None, interpolation)
    network.notes += notes
    return network


def _entering(config: BackboneConfig, shape: Shape, published: Preprocessing | None) -> tuple[int, int]:
    """Height and width of what enters the backbone."""
    if published is not None:
        return published.size
    if isinstance(config, PretrainedConfig) and config.input_size is not None:
        return config.input_size, config.input_size
    own = from_timm.fixed_size(config.name) if isinstance(config, TimmConfig) else None
    return own or shape[1:]


def _constants(published: Preprocessing, channels: int) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std for images of so many channels: of grey ones, the average over the weights' channels."""
    if channels == 1:
        averages = (sum(values) / len(values) for values in (published.mean, published.std))
        mean, std = ([value] for value in averages)
        return mean, std
    if channels != len(published.mean):
        raise RequestError(
            f"backbone.pretrained: takes images of 1 or {len(published.mean)} channels, these have {channels}"
        )
    return published.mean, published.std


def _listed(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
