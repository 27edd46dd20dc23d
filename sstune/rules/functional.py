"""Autograd functions: a linear map and a convolution whose input gradient travels through V.

With ``delta = dL/dy``: ``dW`` and ``db`` are the exact local gradients, ``dx = V^T delta``. Forward passes
are the ordinary ones. Both functions equal, in float64, the autograd of
``f(x.detach(), W) + f(x, V.detach()) - f(x, V.detach()).detach()``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sstune.rules.feedback import Pathway


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
        form: Callable[..., Tensor],
        operand_grads: Callable[..., tuple[Tensor | None, ...]] | None,
        *operands: Tensor | None,
    ) -> Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.form, ctx.operand_grads, *operands = inputs
        ctx.save_for_backward(x, weight, *operands)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        (delta,) = grad_outputs
        x, weight, *operands = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = delta @ ctx.form(weight, *operands)
        rows = delta.reshape(-1, weight.shape[0])
        if ctx.needs_input_grad[1]:
            grad_weight = rows.t() @ x.reshape(-1, weight.shape[1])
        if ctx.needs_input_grad[2]:
            grad_bias = rows.sum(0)
        of_operands = _operand_grads(ctx.operand_grads, grad_weight, operands)
        return grad_x, grad_weight, grad_bias, None, None, *of_operands


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        form: Callable[..., Tensor],
        operand_grads: Callable[..., tuple[Tensor | None, ...]] | None,
        *operands: Tensor | None,
    ) -> Tensor:
        return torch.ops.aten.convolution.default(x, weight, bias, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, ctx.geometry, ctx.form, ctx.operand_grads, *operands = inputs
        ctx.save_for_backward(x, weight, *operands)
        ctx.bias_sizes = None if bias is None else list(bias.shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        (delta,) = grad_outputs
        x, weight, *operands = ctx.saved_tensors
        convolution_backward = torch.ops.aten.convolution_backward.default
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_x = grad_weight = grad_bias = None
        if needs_x:
            # V is not bound to a name, so its memory is free before dW is computed: no more memory than bp.
            grad_x, _, _ = convolution_backward(
                delta,
                x,
                ctx.form(weight, *operands),
                None,
                *ctx.geometry,
                [True, False, False],
            )
        if needs_weight or needs_bias:
            mask = [False, needs_weight, needs_bias]
            _, grad_weight, grad_bias = convolution_backward(
                delta, x, weight, ctx.bias_sizes, *ctx.geometry, mask
            )
        of_operands = _operand_grads(ctx.operand_grads, grad_weight, operands)
        return grad_x, grad_weight, grad_bias, None, None, None, *of_operands


def _operand_grads(
    operand_grads: Callable[..., tuple[Tensor | None, ...]] | None,
    grad_weight: Tensor | None,
    operands: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """Gradients of the feedback's operands; None for all where the layer itself is not trained."""
    if operand_grads is None or grad_weight is None:
        return tuple(None for _ in operands)
    return operand_grads(grad_weight, *operands)


def _autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """Cast as autocast would, which does not cast the operands of a custom function."""
    device = next(t.device.type for t in tensors if t is not None)
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, pathway: Pathway) -> Tensor:
    """``y = x W^T + b`` for x of shape (..., in), with ``dx = delta V``."""
    x_, weight_, bias_ = _autocast(x, weight, bias)
    return _Linear.apply(x_, weight_, bias_, pathway.form, pathway.operand_grads, *pathway.operands)


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, pathway: Pathway, geometry: Geometry
) -> Tensor:
    """A (transposed) convolution of x, (N, C, ...) or unbatched (C, ...), with ``dx`` through V."""
    x_, weight_, bias_ = _autocast(x, weight, bias)
    assert x_ is not None
    unbatched = x_.dim() == weight.dim() - 1
    y = _Convolution.apply(
        x_.unsqueeze(0) if unbatched else x_,
        weight_,
        bias_,
        geometry,
        pathway.form,
        pathway.operand_grads,
        *pathway.operands,
    )
    return y.squeeze(0) if unbatched else y
