"""Backbones: registry, networks, and weights from third-party files."""

from sstune.backbones import alexnet, cifar_resnet, lenet, mlp, resnet, vgg, vit
from sstune.backbones.checkpoints import (
    load_state,
    load_third_party,
    read_checkpoint,
    read_state_dict,
    state_dict_in,
)
from sstune.backbones.network import Network, build, preprocessing
from sstune.backbones.registry import BACKBONES, Backbone
from sstune.preprocessing import Preprocessing

__all__ = [
    "BACKBONES",
    "Backbone",
    "Network",
    "Preprocessing",
    "alexnet",
    "build",
    "cifar_resnet",
    "lenet",
    "load_state",
    "load_third_party",
    "mlp",
    "preprocessing",
    "read_checkpoint",
    "read_state_dict",
    "resnet",
    "state_dict_in",
    "vgg",
    "vit",
]
