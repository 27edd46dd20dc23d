"""The derivative by products of matrices is that of pooling and resizing, used where CUDA shall repeat."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sstune.backbones.separable import AveragePool, Separable, by_matrices, make_repeatable, repeatable


def resized(mode: str) -> Separable:
    return lambda x, size: F.interpolate(x, size, mode=mode, antialias=True)


OPERATIONS = {
    "pooling": F.adaptive_avg_pool2d,
    "bilinear": resized("bilinear"),
    "bicubic": resized("bicubic"),
}
sides = st.tuples(st.integers(1, 20), st.integers(1, 20))


def derivative(y: Tensor, x: Tensor, error: Tensor) -> Tensor:
    return torch.autograd.grad(y, x, error)[0]


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(OPERATIONS)), sides, st.tuples(st.integers(1, 20), st.integers(2, 20)))
def test_value_and_derivative_are_the_operations(
    name: str, old: tuple[int, int], new: tuple[int, int]
) -> None:
    operation, noise = OPERATIONS[name], torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, *old, generator=noise).to(memory_format=torch.channels_last).requires_grad_()
    error = torch.randn(2, 3, *new, generator=noise)
    y = by_matrices(operation, x, new)
    assert torch.equal(y, operation(x, new))
    expected = derivative(operation(x, new), x, error)
    torch.testing.assert_close(derivative(y, x, error), expected, rtol=1e-4, atol=1e-5)


def test_on_a_cpu_nothing_changes() -> None:
    """Figures of earlier runs rest on torch's own derivative, bit by bit."""
    x = torch.rand(2, 3, 7, 7, requires_grad=True)
    pool = AveragePool(3)
    torch.use_deterministic_algorithms(True)
    try:
        for y in (repeatable(F.adaptive_avg_pool2d, x, (3, 3)), pool(x)):
            assert "AdaptiveAvgPool2D" in type(y.grad_fn).__name__
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("size", [1, 3, (2, None), (None, 1)])
def test_pooling_stays_what_it_was(size: int | tuple[int | None, int | None]) -> None:
    network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(size))
    x = torch.rand(2, 3, 5, 8)
    expected = network(x)
    make_repeatable(network)
    assert type(network[1]) is AveragePool
    assert torch.equal(network(x), expected)
    assert torch.equal(network[1](x[0]), expected[0])
