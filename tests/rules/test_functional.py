"""The two autograd paths: derivatives, and what they keep for backward."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from cases import CASES
from torch import Tensor, nn
from torch.func import functional_call
from variants import LOCAL

from sstune.rules import convert
from sstune.rules.feedback import Pathway, fixed, identity
from sstune.rules.functional import Geometry, convolution, linear
from sstune.schema import RuleConfig, Scale

Rule = Callable[..., RuleConfig]

PLAIN_1D = Geometry((1,), (0,), (1,), False, (0,), 1)
GEOMETRIES = {
    "1d": ((2, 2, 6), (3, 2, 3), 3, Geometry((2,), (2,), (2,), False, (0,), 1)),
    "2d": ((2, 2, 4, 3), (3, 2, 3, 2), 3, Geometry((1, 2), (1, 0), (1, 1), False, (0, 0), 1)),
    "2d-depthwise": ((1, 3, 4, 4), (3, 1, 2, 2), 3, Geometry((1, 1), (1, 1), (2, 2), False, (0, 0), 3)),
    "2d-unbatched": ((2, 4, 3), (3, 2, 2, 2), 3, Geometry((1, 1), (0, 0), (1, 1), False, (0, 0), 1)),
    "3d": ((1, 1, 2, 3, 3), (2, 1, 2, 2, 2), 2, Geometry((1,) * 3, (0,) * 3, (1,) * 3, False, (0,) * 3, 1)),
    "transposed-2d": ((1, 4, 2, 2), (4, 1, 2, 3), 2, Geometry((2, 2), (0, 1), (1, 1), True, (1, 0), 2)),
}


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).requires_grad_()


SHAM = Pathway(identity)


class TestGradcheck:
    """With V = W the rule is backpropagation, so finite differences are the oracle."""

    @pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 2, 5), (2, 1, 2, 5)])
    @pytest.mark.parametrize("out", [1, 4])
    @pytest.mark.parametrize("has_bias", [True, False])
    def test_linear(self, shape: tuple[int, ...], out: int, has_bias: bool) -> None:
        bias = gaussian(out, seed=2) if has_bias else None
        operands = (gaussian(*shape), gaussian(out, 5, seed=1), bias)
        assert torch.autograd.gradcheck(lambda x, w, b: linear(x, w, b, SHAM), operands)

    @pytest.mark.parametrize("which", GEOMETRIES)
    @pytest.mark.parametrize("has_bias", [True, False])
    def test_convolution(self, which: str, has_bias: bool) -> None:
        x, weight, out, geometry = GEOMETRIES[which]
        bias = gaussian(out, seed=2) if has_bias else None
        operands = (gaussian(*x), gaussian(*weight, seed=1), bias)
        assert torch.autograd.gradcheck(lambda x, w, b: convolution(x, w, b, SHAM, geometry), operands)

    @pytest.mark.parametrize("name", ["sham", "kp", "pfa_o"])
    @pytest.mark.parametrize("which", ["linear-3d", "conv2d-groups", "conv2d-same-reflect", "transpose2d"])
    def test_whole_layers_whose_feedback_is_the_weight(
        self, which: str, name: str, rule_config: Rule
    ) -> None:
        make, shape, call = CASES[which]
        layer = make().double()
        convert(nn.ModuleList([layer]), rule_config(name), seed=0)
        names = [name for name, _ in layer.named_parameters()]

        def f(x: Tensor, *parameters: Tensor) -> Tensor:
            return functional_call(layer, dict(zip(names, parameters, strict=True)), (x,), call)

        assert torch.autograd.gradcheck(f, (gaussian(*shape), *layer.parameters()))


def linear_2(x: Tensor, weight: Tensor, bias: Tensor | None, matrix: Tensor) -> Tensor:
    return linear(x.flatten(1), weight.flatten(1), bias, Pathway(fixed, (None, matrix.flatten(1))))


def convolution_1(x: Tensor, weight: Tensor, bias: Tensor | None, matrix: Tensor) -> Tensor:
    return convolution(x, weight, bias, Pathway(fixed, (None, matrix)), PLAIN_1D)


@pytest.mark.parametrize("function", [linear_2, convolution_1])
@pytest.mark.parametrize("wanted", list(itertools.product([True, False], repeat=3))[:-1])
def test_what_needs_no_gradient_gets_none_and_changes_no_other(
    function: Callable[..., Tensor], wanted: tuple[bool, bool, bool]
) -> None:
    def gradients(wanted: tuple[bool, ...]) -> list[Tensor | None]:
        operands = [gaussian(2, 3, 4), gaussian(5, 3, 4, seed=1), gaussian(5, seed=2)]
        for operand, needs in zip(operands, wanted, strict=True):
            operand.requires_grad_(needs)
        function(*operands, gaussian(5, 3, 4, seed=3).detach()).square().sum().backward()
        return [operand.grad for operand in operands]

    for needs, found, expected in zip(wanted, gradients(wanted), gradients((True,) * 3), strict=True):
        assert (found is not None) == needs
        assert found is None or torch.equal(found, expected)


@pytest.mark.parametrize("function", [linear_2, convolution_1])
def test_an_expanded_or_strided_upstream_gradient(function: Callable[..., Tensor]) -> None:
    """``y.sum()`` and slices hand down gradients that are not contiguous."""
    weight, matrix = gaussian(5, 3, 4, seed=1), gaussian(5, 3, 4, seed=3).detach()
    x = gaussian(6, 3, 4)
    for reduce in (lambda y: y.sum(), lambda y: y[::2].sum(), lambda y: y.transpose(0, 1)[1:].sum()):
        x.grad = weight.grad = None
        y = function(x, weight, None, matrix)
        reduce(y).backward()
        delta = torch.zeros_like(y.detach()).requires_grad_()
        (upstream,) = torch.autograd.grad(reduce(delta), delta)
        rows = upstream.reshape(6, 5)
        assert x.grad is not None
        assert weight.grad is not None
        np.testing.assert_allclose(
            x.grad.reshape(6, 12), rows @ matrix.reshape(5, 12), rtol=1e-10, atol=1e-10
        )
        expected = rows.T @ x.detach().reshape(6, 12)
        np.testing.assert_allclose(weight.grad.reshape(5, 12), expected, rtol=1e-10, atol=1e-10)


@contextmanager
def saved_bytes() -> Iterator[dict[int, int]]:
    """Bytes of the tensors kept for backward, by storage."""
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(64, 64), (2, 64)),
    "conv2d": (nn.Conv2d(32, 32, 3), (1, 32, 4, 4)),
    "transpose2d": (nn.ConvTranspose2d(32, 32, 3), (1, 32, 2, 2)),
}


class TestMemory:
    @staticmethod
    def kept(layer: nn.Module, rule: RuleConfig, shape: tuple[int, ...]) -> tuple[dict[int, int], nn.Module]:
        layer = copy.deepcopy(layer)
        convert(nn.ModuleList([layer]), rule, seed=0)
        x = torch.rand(shape, requires_grad=True)
        with saved_bytes() as saved:
            output = layer(x)
        output.sum().backward()
        return dict(saved), layer

    @pytest.mark.parametrize("which", LAYERS)
    @pytest.mark.parametrize("scale", list(Scale))
    def test_usf_keeps_no_more_than_bp_but_for_its_scale(
        self, which: str, scale: Scale, rule_config: Rule
    ) -> None:
        layer, shape = LAYERS[which]
        bp, _ = self.kept(layer, rule_config("bp"), shape)
        usf, converted = self.kept(layer, rule_config("usf", scale), shape)
        assert sum(usf.values()) - sum(bp.values()) <= (0 if scale is Scale.unit else 4)
        assert sum(bp.values()) >= layer.weight.untyped_storage().nbytes()
        assert not list(converted.buffers())

    @pytest.mark.parametrize("which", LAYERS)
    @pytest.mark.parametrize("name", [name for name in LOCAL if name != "usf"])
    def test_other_rules_keep_what_is_there_anyway(self, which: str, name: str, rule_config: Rule) -> None:
        layer, shape = LAYERS[which]
        bp, _ = self.kept(layer, rule_config("bp"), shape)
        kept, converted = self.kept(layer, rule_config(name), shape)
        resident = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for tensor in (*converted.feedback.buffers(), *converted.feedback.parameters())
        }
        extra = sum(size for pointer, size in kept.items() if pointer not in resident)
        assert extra - sum(bp.values()) <= 4

    @pytest.mark.parametrize("name", LOCAL)
    def test_nothing_is_kept_without_gradients(self, name: str, rule_config: Rule) -> None:
        layer = copy.deepcopy(LAYERS["linear"][0])
        convert(nn.ModuleList([layer]), rule_config(name), seed=0)
        with saved_bytes() as saved, torch.no_grad():
            output = layer(torch.rand(2, 64, requires_grad=True))
        assert not saved
        assert not output.requires_grad
