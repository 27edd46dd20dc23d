"""What a feedback layer must compute, written out once more and by other means.

``f(x.detach(), W) + f(x, V.detach()) - f(x, V.detach()).detach()``, with V by the rules' definitions.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from sstune.rules import convert
from sstune.schema import RuleConfig, Scale

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).to(dtype)


def is_transposed(layer: nn.Module) -> bool:
    return isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)


def scale_of(layer: Any, scale: Scale) -> float:
    """s, from the layer's weight as it is now."""
    weight: Tensor = layer.weight.detach()
    taps = weight[0, 0].numel()
    if scale is Scale.unit:
        return 1.0
    if scale is Scale.weight_rms:
        return math.sqrt(float(weight.square().mean()))
    if scale is Scale.xavier:
        return math.sqrt(2 / (taps * (weight.shape[0] + weight.shape[1])))
    if isinstance(layer, nn.Linear):
        return 1 / math.sqrt(layer.in_features)
    return math.sqrt(2 / (taps * layer.out_channels))


def by_group(layer: Any, one: Tensor, other: Tensor, subscripts: str) -> Tensor:
    """``einsum`` of ``one[g]`` and the g-th of equal blocks of ``other``, for each group g of the layer."""
    blocks = other.chunk(getattr(layer, "groups", 1))
    return torch.cat([torch.einsum(subscripts, *pair) for pair in zip(one, blocks, strict=True)])


def mixed(layer: Any, mix: Tensor, weight: Tensor) -> Tensor:
    """P W: every output's weights become a mixture of those of the outputs of its group."""
    return by_group(layer, mix, weight, "pq,iq...->ip..." if is_transposed(layer) else "pq,qi...->pi...")


def product(layer: Any, fixed: Tensor, trained: Tensor) -> Tensor:
    """B R, with R as the rule keeps it: (groups, mid, inputs x taps)."""
    groups, mid, _ = trained.shape
    inputs = layer.weight.shape[0] // groups if is_transposed(layer) else layer.weight.shape[1]
    trained = trained.reshape(groups * mid, inputs, *layer.weight.shape[2:])
    return by_group(layer, fixed, trained, "pm,mi...->ip..." if is_transposed(layer) else "pm,mi...->pi...")


def learned(layer: Any, fixed: Tensor, grad_weight: Tensor) -> Tensor:
    """dR = B^T dW, as the rule keeps R."""
    subscripts = "pm,ip...->mi..." if is_transposed(layer) else "pm,pi...->mi..."
    blocks = grad_weight.chunk(len(fixed))
    return torch.stack(
        [
            torch.einsum(subscripts, *pair).reshape(fixed.shape[2], -1)
            for pair in zip(fixed, blocks, strict=True)
        ]
    )


def feedback_of(rule: RuleConfig, layer: Any) -> Tensor:
    """V from the rule's definition and what the layer's feedback has stored."""
    weight, stored = layer.weight.detach(), {**layer.feedback.__dict__["_buffers"]}
    stored.update(layer.feedback.named_parameters())
    stored = {name: value.detach() for name, value in stored.items() if value is not None}
    if "trained" in stored:
        return product(layer, stored["fixed"], stored["trained"])
    if rule.name in ("sham", "kp", "pfa", "pfa_o"):
        start = mixed(layer, stored["mix"], weight) if "mix" in stored else weight
        return start + stored["decay"] * stored["difference"] if "decay" in stored else start
    if rule.name == "wm":
        return stored["mirrored"]
    scale = scale_of(layer, rule.scale)
    if rule.name in ("fa", "fa_signed"):
        return scale * stored["frozen"].to(weight.dtype)
    return scale * weight.sign() * stored.get("magnitude", torch.ones_like(weight))


def oracle(plain: nn.Module, matrix: Tensor, x: Tensor, call: dict[str, Any] | None = None) -> Tensor:
    """The layer's output, with a gradient that reaches x through V alone."""

    def f(x: Tensor, weight: Any, bias: Any) -> Tensor:
        parameters = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        result: Tensor = functional_call(plain, parameters, (x,), call)
        return result

    weight, bias = plain.weight, plain.bias
    through_v = f(x, matrix.detach(), None if bias is None else bias.detach())
    return f(x.detach(), weight, bias) + through_v - through_v.detach()


def disturb(layer: Any) -> None:
    """W with a zero, and with other values than at conversion; trained feedback likewise."""
    with torch.no_grad():
        weight = layer.weight
        weight.mul_(-1.5)[0, 0] *= torch.arange(weight[0, 0].numel()).reshape(weight[0, 0].shape)
        for parameter in layer.feedback.parameters() if hasattr(layer, "feedback") else ():
            parameter.mul_(0.7)


def assert_equals_oracle(layer: Any, rule: RuleConfig, x: Tensor, call: dict[str, Any]) -> None:
    """Output, dx, dW, db, and what trained feedback learns."""
    plain: Any = copy.deepcopy(layer)
    convert(nn.ModuleList([layer]), rule, seed=3)
    disturb(layer)
    disturb(plain)
    operands = [x.clone(memory_format=torch.preserve_format).requires_grad_() for _ in range(2)]
    expected = oracle(plain, feedback_of(rule, layer), operands[1], call)
    found = layer(operands[0], **call)
    upstream = gaussian(*found.shape, seed=1)
    found.backward(upstream)
    expected.backward(upstream)
    np.testing.assert_allclose(found.detach(), expected.detach(), **EXACT)
    np.testing.assert_allclose(operands[0].grad, operands[1].grad, **EXACT, err_msg="dx")
    for name, parameter in plain.named_parameters():
        np.testing.assert_allclose(layer.get_parameter(name).grad, parameter.grad, **EXACT, err_msg=name)
    for name, parameter in layer.feedback.named_parameters():
        feedback = layer.feedback
        wanted = torch.zeros(()) if name == "decay" else learned(layer, feedback.fixed, plain.weight.grad)
        wanted = wanted * feedback.mask if getattr(feedback, "mask", None) is not None else wanted
        np.testing.assert_allclose(parameter.grad, wanted, **EXACT, err_msg=name)
