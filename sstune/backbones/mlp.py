"""A fully connected network on pixels."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict

from torch import nn

from sstune.backbones.registry import BACKBONES, Backbone, Shape
from sstune.schema import MlpConfig


@BACKBONES.register("mlp")
def mlp(config: MlpConfig, shape: Shape, outputs: int) -> Backbone:
    """Pixels -> ``hidden`` widths with ReLU -> outputs; Glorot's uniform initialisation, biases zero."""
    widths = [math.prod(shape), *config.hidden]
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    for number, (inputs, width) in enumerate(itertools.pairwise(widths), start=1):
        layers[f"hidden{number}"] = _linear(inputs, width)
        layers[f"relu{number}"] = nn.ReLU()
    layers["head"] = _linear(widths[-1], outputs)
    stem = "hidden1" if config.hidden else "head"
    return Backbone(nn.Sequential(OrderedDict(layers)), head="head", stem=stem)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
