from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sstune.backbones import BACKBONES
from sstune.schema import MlpConfig


def widths(module: nn.Module) -> list[tuple[int, int]]:
    return [(m.in_features, m.out_features) for m in module.modules() if isinstance(m, nn.Linear)]


def test_the_default_is_the_published_network() -> None:
    """784-512-512-10 with ReLU, as a function written out."""
    module = BACKBONES["mlp"](MlpConfig("mlp"), (1, 28, 28), 10).module.double()
    assert widths(module) == [(784, 512), (512, 512), (512, 10)]
    one, two, head = (m for m in module.modules() if isinstance(m, nn.Linear))
    x = torch.randn(3, 1, 28, 28, dtype=torch.float64)
    hidden = torch.clamp(x.reshape(3, -1) @ one.weight.T + one.bias, min=0)
    hidden = torch.clamp(hidden @ two.weight.T + two.bias, min=0)
    torch.testing.assert_close(module(x), hidden @ head.weight.T + head.bias, rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=25)
@given(
    hidden=st.lists(st.integers(1, 9), max_size=3),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
    outputs=st.integers(1, 4),
)
def test_any_widths(hidden: list[int], shape: tuple[int, int, int], outputs: int) -> None:
    made = BACKBONES["mlp"](MlpConfig("mlp", hidden), shape, outputs)
    sizes = [math.prod(shape), *hidden, outputs]
    assert widths(made.module) == list(itertools.pairwise(sizes))
    assert made.module(torch.rand(2, *shape)).shape == (2, outputs)
    assert made.module.get_submodule(made.head) is list(made.module.modules())[-1]
    assert widths(made.module.get_submodule(made.stem)) == [(sizes[0], sizes[1])]


def test_initialisation_is_glorots_uniform() -> None:
    torch.manual_seed(0)
    module = BACKBONES["mlp"](MlpConfig("mlp"), (1, 28, 28), 10).module
    for layer in (m for m in module.modules() if isinstance(m, nn.Linear)):
        bound = math.sqrt(6 / (layer.in_features + layer.out_features))
        assert float(layer.weight.detach().abs().max()) <= bound
        assert float(layer.weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.03)
        assert not layer.bias.any()
