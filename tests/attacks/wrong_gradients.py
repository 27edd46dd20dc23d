"""Layers whose gradient is not that of what they compute."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _Backward(torch.autograd.Function):
    """``images @ forward.T``, whose gradient comes back through another matrix."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
        ctx.save_for_backward(backward)
        return images @ forward.T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (backward,) = ctx.saved_tensors
        return gradient @ backward, None, None


class ForeignFeedback(nn.Linear):
    """A linear layer with a fixed random matrix of its own in the backward pass; nothing of ``sstune``
    knows."""

    feedback: Tensor

    def __init__(self, n_in: int, n_out: int, share: float = 1.0, seed: int = 0) -> None:
        """``share``: of the feedback that is random, the rest being the weights."""
        super().__init__(n_in, n_out, bias=False)
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("random", torch.randn(n_out, n_in, generator=generator))
        self.share = share

    random: Tensor

    def back(self) -> Tensor:
        """The matrix of the backward pass."""
        scaled = self.random * self.weight.std() / self.random.std()
        return self.share * scaled + (1 - self.share) * self.weight

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = _Backward.apply(images, self.weight, self.back())
        return found


class Steps(nn.Module):
    """Rounds to 16 levels of grey; the gradient passes straight through."""

    def forward(self, images: Tensor) -> Tensor:
        return images + ((images * 16).round() / 16 - images).detach()
