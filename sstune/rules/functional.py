"""The two autograd paths: a linear map and a convolution whose input gradient travels through V.

With ``delta = dL/dy``: ``dW`` and ``db`` are the exact local gradients, ``dx = V^T delta``. Forward passes
are the ordinary ones. Both functions equal, in float64, the autograd of
``f(x.detach(), W) + f(x, V.detach()) - f(x, V.detach()).detach()``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sstune.rules.feedback import Factors, feedback_matrix


class Geometry(NamedTuple):
    """Arguments of a convolution after the operands, in ATen's order; one value per spatial dimension."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    transposed: bool
    output_padding: Sequence[int]
    groups: int


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: Tensor | None,
        magnitude: Tensor | None,
        signed: bool,
    ) -> Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, scale, magnitude, signed = inputs
        ctx.save_for_backward(x, weight, scale, magnitude)
        ctx.signed = signed

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        (delta,) = grad_outputs
        x, weight, scale, magnitude = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = delta @ feedback_matrix(weight, Factors(scale, magnitude, ctx.signed))
        rows = delta.reshape(-1, weight.shape[0])
        if ctx.needs_input_grad[1]:
            grad_weight = rows.t() @ x.reshape(-1, weight.shape[1])
        if ctx.needs_input_grad[2]:
            grad_bias = rows.sum(0)
        return grad_x, grad_weight, grad_bias, None, None, None


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: Tensor | None,
        magnitude: Tensor | None,
        signed: bool,
        *geometry: Any,
    ) -> Tensor:
        return torch.ops.aten.convolution.default(x, weight, bias, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, scale, magnitude, signed, *geometry = inputs
        ctx.save_for_backward(x, weight, scale, magnitude)
        ctx.signed = signed
        ctx.bias_sizes = None if bias is None else list(bias.shape)
        ctx.geometry = tuple(geometry)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        (delta,) = grad_outputs
        x, weight, scale, magnitude = ctx.saved_tensors
        convolution_backward = torch.ops.aten.convolution_backward.default
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_x = grad_weight = grad_bias = None
        if needs_x:
            # V has no name here, so it is gone before dW takes the same room: no memory beyond bp's.
            grad_x, _, _ = convolution_backward(
                delta,
                x,
                feedback_matrix(weight, Factors(scale, magnitude, ctx.signed)),
                None,
                *ctx.geometry,
                [True, False, False],
            )
        if needs_weight or needs_bias:
            mask = [False, needs_weight, needs_bias]
            _, grad_weight, grad_bias = convolution_backward(
                delta, x, weight, ctx.bias_sizes, *ctx.geometry, mask
            )
        return (grad_x, grad_weight, grad_bias, None, None, None, *(None for _ in ctx.geometry))


def _autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """Cast as autocast would: it does not reach the operands of a custom function by itself."""
    device = next(t.device.type for t in tensors if t is not None)
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, factors: Factors) -> Tensor:
    """``y = x W^T + b`` for x of shape (..., in), with ``dx = delta V``."""
    x_, weight_, bias_ = _autocast(x, weight, bias)
    return _Linear.apply(x_, weight_, bias_, *factors)


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, factors: Factors, geometry: Geometry
) -> Tensor:
    """A (transposed) convolution of x, (N, C, ...) or unbatched (C, ...), with ``dx`` through V."""
    x_, weight_, bias_ = _autocast(x, weight, bias)
    assert x_ is not None
    unbatched = x_.dim() == weight.dim() - 1
    y = _Convolution.apply(x_.unsqueeze(0) if unbatched else x_, weight_, bias_, *factors, *geometry)
    return y.squeeze(0) if unbatched else y
