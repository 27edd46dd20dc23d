"""Registries of backbones and of the preprocessing of published weights."""

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

    The names may be glob patterns for several modules. ``notes`` describe adaptations of published weights.
    ``settled`` has configuration fields that were chosen by the image size, such as ``variant``: networks
    that start from this one's weights use the same values, whatever their images.
    """

    module: nn.Module
    head: str
    stem: str
    notes: tuple[str, ...] = ()
    settled: Mapping[str, Any] = field(default_factory=dict)


# (channels, height, width) of the images.
Shape = tuple[int, int, int]

# Builders ``(config, shape, outputs) -> Backbone``, with the shape of the backbone's input. Builders of a
# PretrainedConfig also take ``load``: whether to load the published weights.
Builder = Callable[..., Backbone]
BACKBONES: Registry[Builder] = Registry("backbone.name")

# Readers ``(config) -> Preprocessing`` of the published weights' metadata.
PREPROCESSINGS: Registry[Callable[..., Preprocessing]] = Registry("backbone.name")
