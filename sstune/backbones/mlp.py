"""A fully connected network on pixels."""

from __future__ import annotations

import itertools
import math

from torch import nn

from sstune.backbones.registry import BACKBONES, Backbone, Shape
from sstune.schema import MlpConfig


@BACKBONES.register("mlp")
def mlp(config: MlpConfig, shape: Shape, outputs: int) -> Backbone:
    """Pixels -> ``hidden`` widths with ReLU -> outputs; Glorot's uniform initialisation, biases zero."""
    widths = [math.prod(shape), *config.hidden, outputs]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, width in itertools.pairwise(widths):
        linear = nn.Linear(inputs, width)
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    module = nn.Sequential(*layers[:-1])  # no activation after the head
    return Backbone(module, head=str(len(module) - 1), stem="1")
