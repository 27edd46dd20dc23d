"""Backbones: registry, networks, and weights from other people's files."""

from sstune.backbones import alexnet, cifar_resnet, lenet, mlp, resnet, vgg, vit
from sstune.backbones.checkpoints import load_third_party, read_state_dict
from sstune.backbones.images import Preprocessing
from sstune.backbones.network import Network, build, preprocessing
from sstune.backbones.registry import BACKBONES, Backbone

__all__ = [
    "BACKBONES",
    "Backbone",
    "Network",
    "Preprocessing",
    "alexnet",
    "build",
    "cifar_resnet",
    "lenet",
    "load_third_party",
    "mlp",
    "preprocessing",
    "read_state_dict",
    "resnet",
    "vgg",
    "vit",
]
