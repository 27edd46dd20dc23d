"""A small network that has learned the digits, as backpropagation leaves it and converted."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sstune import datasets
from sstune.backbones import Backbone, Network
from sstune.datasets import Split
from sstune.rules import convert
from sstune.schema import BrsfConfig, DigitsConfig, Redraw, RuleConfig, Scale

DIGITS = DigitsConfig(name="digits", label="digits", mean=[0.3], std=[0.35])


@pytest.fixture(scope="session")
def digits() -> datasets.Splits:
    return datasets.load(DIGITS)


@pytest.fixture(scope="session")
def trained(digits: datasets.Splits) -> Network:
    """Trained by plain torch in a second or two; do not change it, use ``network``."""
    return learned(digits, 0)


@pytest.fixture(scope="session")
def other(digits: datasets.Splits) -> Network:
    """As ``trained``, from another seed: to transfer attacks from; do not change it."""
    return learned(digits, 1)


def learned(digits: datasets.Splits, seed: int) -> Network:
    torch.manual_seed(seed)
    module = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(512, 10),
    )
    network = Network(Backbone(module, head="7", stem="0"), DIGITS.mean, DIGITS.std)
    images, labels = digits.train.images / 255, digits.train.targets
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(8):
        for batch in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
    optimizer.zero_grad()
    return network.eval()


@pytest.fixture
def network(trained: Network) -> Network:
    """A copy of the trained network, in eval mode."""
    return copy.deepcopy(trained)


@pytest.fixture
def converted(trained: Network) -> Callable[[str], Network]:
    """``converted("usf")``: the trained network with a rule's feedback; ``brsf-forward`` draws in a pass."""

    def make(name: str, scale: Scale = Scale.weight_rms) -> Network:
        network = copy.deepcopy(trained)
        name, _, when = name.partition("-")
        rule = (
            BrsfConfig(name, scale, redraw=Redraw(when or "step"))
            if name == "brsf"
            else RuleConfig(name, scale)
        )
        convert(network.backbone, rule, 0, network.aliases)
        return network

    return make


@pytest.fixture
def test_split(digits: datasets.Splits) -> Split:
    """The first 120 test digits."""
    return digits.test.take(torch.arange(120))
