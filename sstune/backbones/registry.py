"""Networks by name, and the one shape they all have: normalisation first, then the backbone with its head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sstune.registry import Registry
from sstune.schema import BackboneConfig, RequestError


@dataclass(frozen=True)
class Backbone:
    """A network on normalised images; ``head`` and ``stem`` name its last and first layer with weights."""

    module: nn.Module
    head: str
    stem: str
    notes: tuple[str, ...] = ()


# (channels, height, width) of the images.
Shape = tuple[int, int, int]

# Builders ``(config, shape, outputs) -> Backbone``.
BACKBONES: Registry[Callable[..., Backbone]] = Registry("backbone.name")


class Network(nn.Module):
    """What is trained and attacked: images in [0,1], (N, C, H, W) -> outputs, (N, outputs).

    Normalisation is its first layer, so an attack moves in pixel space. Its constants belong to the
    configuration and are not in the state dict.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1), persistent=False)
        self.backbone = backbone.module
        self.aliases = {"head": backbone.head, "stem": backbone.stem}
        self.notes = list(backbone.notes)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.backbone((images - self.mean) / self.std)
        return outputs


def build(
    config: BackboneConfig, shape: Shape, outputs: int, mean: Sequence[float], std: Sequence[float]
) -> Network:
    """The network that ``config`` names, for images of ``shape`` (channels, height, width).

    Raises:
        RequestError: unknown name, constants that do not fit the number of channels, or images of a size that
            the backbone cannot take.
    """
    if len(mean) not in (1, shape[0]):
        raise RequestError(f"dataset.mean: has {len(mean)} values, the images have {shape[0]} channels")
    return Network(BACKBONES[config.name](config, shape, outputs), mean, std)
