from __future__ import annotations

import pytest
import torch
from torch import nn

from sstune import backbones
from sstune.backbones import BACKBONES
from sstune.schema import BackboneConfig, RequestError

# name: image shape, and the layers' weights in BioTorch's own definitions (biotorch/models/le_net.py)
LENETS = {
    "lenet_mnist": ((1, 32, 32), [(6, 1, 5, 5), (16, 6, 5, 5), (120, 16, 5, 5), (84, 120), (10, 84)]),
    "lenet_cifar": ((3, 32, 32), [(32, 3, 3, 3), (64, 32, 3, 3), (128, 64, 3, 3), (256, 128), (10, 256)]),
}


@pytest.mark.parametrize("name", LENETS)
def test_layers_are_biotorchs(name: str) -> None:
    shape, weights = LENETS[name]
    made = BACKBONES[name](BackboneConfig(name), shape, 10)
    layers = [m for m in made.module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in layers] == weights
    assert all(layer.bias is not None and not layer.bias.any() for layer in layers)
    assert made.module(torch.rand(2, *shape)).shape == (2, 10)
    assert made.module.get_submodule(made.stem) is layers[0]
    assert made.module.get_submodule(made.head) is layers[-1]


def test_mnist_is_lenet_5_as_a_function() -> None:
    made = BACKBONES["lenet_mnist"](BackboneConfig("lenet_mnist"), (1, 32, 32), 10).module
    x = torch.rand(2, 1, 32, 32)
    f = torch.nn.functional
    h = f.max_pool2d(f.relu(made.conv1(x)), 2)
    h = f.max_pool2d(f.relu(made.conv2(h)), 2)
    h = f.relu(made.conv3(h)).flatten(1)
    assert torch.equal(made(x), made.fc2(f.relu(made.fc1(h))))


def test_cifar_averages_over_the_last_map() -> None:
    made = BACKBONES["lenet_cifar"](BackboneConfig("lenet_cifar"), (3, 32, 32), 10).module
    x = torch.rand(2, 3, 32, 32)
    f = torch.nn.functional
    h = f.max_pool2d(f.relu(made.conv1(x)), 2)
    h = f.max_pool2d(f.relu(made.conv2(h)), 2)
    h = f.relu(made.conv3(h)).mean((2, 3))
    torch.testing.assert_close(made(x), made.fc2(f.relu(made.fc1(h))))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("lenet_mnist", (1, 28, 28), "takes 32x32 images, not 28x28; dataset=mnist dataset.padding=2"),
        ("lenet_cifar", (3, 17, 40), "needs 18x18 images or larger, not 17x40"),
    ],
)
def test_other_sizes_are_refused(name: str, shape: tuple[int, int, int], message: str) -> None:
    with pytest.raises(RequestError, match=f"backbone.name: {name} {message}"):
        backbones.build(BackboneConfig(name), shape, 10, [0.5], [0.5])


def test_the_smallest_size_of_lenet_cifar_works() -> None:
    module = BACKBONES["lenet_cifar"](BackboneConfig("lenet_cifar"), (3, 18, 18), 10).module
    assert module(torch.rand(1, 3, 18, 18)).shape == (1, 10)
