"""The two LeNets of BioTorch's benchmarks (arXiv 2108.13446): for 32x32 digits, and for 32x32 photographs.

Weights are initialised by Glorot's uniform and biases by zero, as in its converted networks.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from sstune.backbones.registry import BACKBONES, Backbone, Shape
from sstune.schema import BackboneConfig, RequestError


@BACKBONES.register("lenet_mnist")
def lenet_mnist(config: BackboneConfig, shape: Shape, outputs: int) -> Backbone:
    """5x5 convolutions with 6, 16 and 120 channels, a hidden layer of 84 units.

    Raises:
        RequestError: the images are not 32x32.
    """
    if shape[1:] != (32, 32):
        raise RequestError(
            f"backbone.name: lenet_mnist takes 32x32 images, not {shape[1]}x{shape[2]}; "
            f"dataset=mnist dataset.padding=2 has that size"
        )
    return _initialised(
        conv1=nn.Conv2d(shape[0], 6, 5),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(6, 16, 5),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
        conv3=nn.Conv2d(16, 120, 5),
        relu3=nn.ReLU(),
        flatten=nn.Flatten(),
        fc1=nn.Linear(120, 84),
        relu4=nn.ReLU(),
        fc2=nn.Linear(84, outputs),
    )


@BACKBONES.register("lenet_cifar")
def lenet_cifar(config: BackboneConfig, shape: Shape, outputs: int) -> Backbone:
    """3x3 convolutions with 32, 64 and 128 channels, global average pooling, a hidden layer of 256 units.

    Raises:
        RequestError: the images are smaller than 18x18.
    """
    if min(shape[1:]) < 18:
        raise RequestError(
            f"backbone.name: lenet_cifar needs 18x18 images or larger, not {shape[1]}x{shape[2]}"
        )
    return _initialised(
        conv1=nn.Conv2d(shape[0], 32, 3),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(32, 64, 3),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
        conv3=nn.Conv2d(64, 128, 3),
        relu3=nn.ReLU(),
        mean=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc1=nn.Linear(128, 256),
        relu4=nn.ReLU(),
        fc2=nn.Linear(256, outputs),
    )


def _initialised(**layers: nn.Module) -> Backbone:
    for layer in layers.values():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return Backbone(nn.Sequential(OrderedDict(layers)), head="fc2", stem="conv1")
