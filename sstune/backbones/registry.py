"""Networks by name: what a builder returns, and the weights' preprocessing that belongs to some names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from sstune.preprocessing import Preprocessing
from sstune.registry import Registry


@dataclass(frozen=True)
class Backbone:
    """A network on normalised images; ``head`` and ``stem`` name its last and first layer with weights.

    Where several modules are the head (or stem), the name is a glob pattern. ``notes`` say what was adapted.
    ``settled`` has the fields of the configuration that were left to be chosen by the images: networks that
    start from this one's weights are made alike, whatever their images.
    """

    module: nn.Module
    head: str
    stem: str
    notes: tuple[str, ...] = ()
    settled: Mapping[str, Any] = field(default_factory=dict)


# (channels, height, width) of the images.
Shape = tuple[int, int, int]

# Builders ``(config, shape, outputs) -> Backbone``, of images as they enter the backbone; those of a
# PretrainedConfig take ``load`` besides: whether to load the published weights.
Builder = Callable[..., Backbone]
BACKBONES: Registry[Builder] = Registry("backbone.name")

# Readers ``(config) -> Preprocessing`` of the published weights' metadata.
PREPROCESSINGS: Registry[Callable[..., Preprocessing]] = Registry("backbone.name")
