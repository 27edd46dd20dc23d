"""Average pooling and resizing with a deterministic derivative on CUDA.

Torch's backward passes of these operations are nondeterministic on CUDA and fail under
``deterministic=true``. Both operations are separable, y = R x C^T, so that their derivative is a product of
matrices, R^T g C, which is deterministic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sstune.copying import to_device

# ``(x, (height, width)) -> y`` for x of shape (N, C, H, W), linear and equal for all images and channels.
Separable = Callable[[Tensor, tuple[int, int]], Tensor]


def repeatable(operation: Separable, x: Tensor, size: tuple[int, int]) -> Tensor:
    """``operation(x, size)``; with deterministic algorithms on CUDA, as :func:`by_matrices`."""
    needed = x.requires_grad and torch.is_grad_enabled() and torch.are_deterministic_algorithms_enabled()
    if not (needed and x.is_cuda):
        return operation(x, size)
    return by_matrices(operation, x, size)


def by_matrices(operation: Separable, x: Tensor, size: tuple[int, int]) -> Tensor:
    """``operation(x, size)`` with the derivative R^T g C."""
    rows, columns = (
        to_device(matrix(operation, old, new), x.device).to(x.dtype)
        for old, new in zip(x.shape[2:], size, strict=True)
    )
    outputs: Tensor = _ByMatrices.apply(x, rows, columns, operation, size)
    return outputs


def matrix(operation: Separable, old: int, new: int) -> Tensor:
    """The matrix of ``operation`` along one axis, (new, old), from its response to unit vectors."""
    alone = torch.eye(old)[None, :, :, None].expand(
        1, old, old, 2
    )  # torch's antialiasing is wrong at width 1
    return operation(alone, (new, 2))[0, :, :, 0].T.contiguous()


class _ByMatrices(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, rows: Tensor, columns: Tensor, operation: Separable, size: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(rows, columns)
        return operation(x, size)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns = ctx.saved_tensors
        return rows.T @ gradients[0] @ columns, None, None, None, None


class AveragePool(nn.AdaptiveAvgPool2d):
    """nn.AdaptiveAvgPool2d with a deterministic derivative."""

    def forward(self, x: Tensor) -> Tensor:
        asked = self.output_size if isinstance(self.output_size, tuple) else (self.output_size,) * 2
        height, width = (old if new is None else new for old, new in zip(x.shape[-2:], asked, strict=True))
        if x.dim() != 4 or (height, width) == (1, 1):  # a mean, deterministic already
            return super().forward(x)
        return repeatable(F.adaptive_avg_pool2d, x, (height, width))


def make_repeatable(network: nn.Module) -> None:
    """Make average pooling in ``network`` deterministic, in place."""
    for module in network.modules():
        if type(module) is nn.AdaptiveAvgPool2d:
            module.__class__ = AveragePool
