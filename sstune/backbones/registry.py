"""Networks by name: what a builder returns, and the weights' preprocessing that belongs to some names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from sstune.backbones.images import Preprocessing
from sstune.registry import Registry


@dataclass(frozen=True)
class Backbone:
    """A network on normalised images; ``head`` and ``stem`` name its last and first layer with weights.

    Where several modules are the head (or stem), the name is a glob pattern. ``notes`` say what was adapted.
    """

    module: nn.Module
    head: str
    stem: str
    notes: tuple[str, ...] = ()


# (channels, height, width) of the images.
Shape = tuple[int, int, int]

# Builders ``(config, shape, outputs) -> Backbone``, of images as they enter the backbone; those of a
# PretrainedConfig take ``load`` besides: whether to load the published weights.
Builder = Callable[..., Backbone]
BACKBONES: Registry[Builder] = Registry("backbone.name")

# Readers ``(config) -> Preprocessing`` of the published weights' metadata.
PREPROCESSINGS: Registry[Callable[..., Preprocessing]] = Registry("backbone.name")
