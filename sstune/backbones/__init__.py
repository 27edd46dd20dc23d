"""Backbones: registry, networks, and weights from other people's files."""

from sstune.backbones import cifar_resnet, lenet, mlp, resnet, vit
from sstune.backbones.checkpoints import load_third_party, read_state_dict
from sstune.backbones.registry import BACKBONES, Backbone, Network, build

__all__ = [
    "BACKBONES",
    "Backbone",
    "Network",
    "build",
    "cifar_resnet",
    "lenet",
    "load_third_party",
    "mlp",
    "read_state_dict",
    "resnet",
    "vit",
]
