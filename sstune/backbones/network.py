"""Networks: resizing and normalisation, then a backbone with its head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from sstune.backbones import from_timm
from sstune.backbones.images import centre, resize
from sstune.backbones.registry import BACKBONES, PREPROCESSINGS, Backbone, Builder, Shape
from sstune.backbones.separable import make_repeatable
from sstune.preprocessing import Preprocessing
from sstune.schema import BackboneConfig, Interpolation, PretrainedConfig, RequestError, TimmConfig


class Network(nn.Module):
    """Network on images in [0,1]: (N, C, H, W) -> (N, outputs).

    Resizing (to ``size / crop_pct``, of which the centre of ``size`` is cropped; None: no resizing) and
    normalisation are its first layers, so that attacks work in the dataset's pixel space. Their constants
    come from the configuration and are not in the state dict.
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
        crop_pct: float = 1.0,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1), persistent=False)
        self.size = size
        self.interpolation = interpolation
        self.crop_pct = crop_pct
        self.backbone = backbone.module
        make_repeatable(self.backbone)
        self.aliases = {"head": backbone.head, "stem": backbone.stem}
        self.notes = list(backbone.notes)
        self.settled = dict(backbone.settled)

    @property
    def heads(self) -> list[nn.Module]:
        """The modules that the alias "head" names; usually one."""
        name = self.aliases["head"]
        return [module for found, module in self.backbone.named_modules() if fnmatchcase(found, name)]

    def prepare(self, images: Tensor) -> Tensor:
        """Resize, crop and normalise: the input of the backbone, (N, C, *size)."""
        if self.size is not None:
            images = resize(images, _uncropped(self.size, self.crop_pct), self.interpolation)
            images = centre(images, self.size)
        return (images - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.backbone(self.prepare(images))
        return outputs


def preprocessing(config: BackboneConfig) -> Preprocessing | None:
    """The preprocessing of the published weights, with ``input_size`` if given; None without such weights.

    Raises:
        RequestError: the name is unknown, or has no published weights.
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
    """Build the network of ``config`` for images of ``shape`` (channels, height, width).

    Args:
        mean, std: of the dataset; a pre-trained backbone uses those of its weights instead.
        weights: whether to load the published weights of a pre-trained backbone. If false, the same network
            has random weights, to be replaced by those of a run or file.

    Raises:
        RequestError: the name is unknown, ``mean`` does not fit the number of channels, the backbone does not
            accept images of this size, or published weights are not cached and cannot be downloaded.
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
    crop = "" if config.crop_pct == 1 else f", the centre of {_by(_uncropped(size, config.crop_pct))}"
    if size != tuple(image_size) or crop:
        notes.append(f"resized: {_by(shape[1:])} -> {_by(size)}, {interpolation}{crop}")
    crop_pct = config.crop_pct
    resized = size if size != tuple(image_size) or crop_pct < 1 else None
    network = Network(backbone, mean, std, resized, interpolation, crop_pct)
    network.notes += notes
    return network


def _entering(config: BackboneConfig, shape: Shape, published: Preprocessing | None) -> tuple[int, int]:
    """(height, width) of the backbone's input."""
    if published is not None:
        return published.size
    if isinstance(config, PretrainedConfig) and config.input_size is not None:
        return config.input_size, config.input_size
    own = from_timm.fixed_size(config.name) if isinstance(config, TimmConfig) else None
    return own or shape[1:]


def _uncropped(size: tuple[int, int], crop_pct: float) -> tuple[int, int]:
    """(height, width) of which the centre is cropped."""
    return round(size[0] / crop_pct), round(size[1] / crop_pct)


def _constants(published: Preprocessing, channels: int) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std for ``channels``; for grey images the averages over the weights' channels."""
    if channels == 1:
        averages = (sum(values) / len(values) for values in (published.mean, published.std))
        mean, std = ([value] for value in averages)
        return mean, std
    if channels != len(published.mean):
        raise RequestError(
            f"backbone.pretrained: accepts images of 1 or {len(published.mean)} channels, got {channels}"
        )
    return published.mean, published.std


def _listed(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
