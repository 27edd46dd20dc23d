"""Step rules of the gradient attacks: they map the gradient of the loss to a step.

A step rule is made for a batch of N images and called for the open samples only; the state of the other
samples does not change.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sstune.schema import Norm

# ``(gradient, index) -> step``: (n, C, H, W) each, for the samples at ``index``, (n,), of the batch.
StepRule = Callable[[Tensor, Tensor], Tensor]


class FixedLength:
    """Steps of length ``size`` in ``norm``: the gradient's sign in Linf, its direction in L2."""

    def __init__(self, images: Tensor, *, size: float, norm: Norm) -> None:
        self.size = size
        self.norm = norm

    def __call__(self, gradient: Tensor, index: Tensor) -> Tensor:
        return self.size * direction(gradient, self.norm)


class Momentum:
    """Steps of length ``size`` along the accumulated gradient (Dong et al. 2018, arXiv 1710.06081, eq. 6):
    ``decay`` times the one before, plus the present one, divided by its mean absolute value."""

    def __init__(self, images: Tensor, *, size: float, norm: Norm, decay: float) -> None:
        self.size = size
        self.norm = norm
        self.decay = decay
        self.velocity = torch.zeros_like(images)

    def __call__(self, gradient: Tensor, index: Tensor) -> Tensor:
        mean = gradient.abs().mean((1, 2, 3), keepdim=True)
        gradient = self.decay * self.velocity[index] + gradient / mean.where(mean > 0, 1)
        self.velocity[index] = gradient
        return self.size * direction(gradient, self.norm)


class Sgd:
    """Stochastic gradient descent with momentum, as torch.optim.SGD: the step grows with the gradient."""

    def __init__(self, images: Tensor, *, lr: float, momentum: float = 0.0) -> None:
        self.lr = lr
        self.momentum = momentum
        self.velocity = torch.zeros_like(images)

    def __call__(self, gradient: Tensor, index: Tensor) -> Tensor:
        velocity = self.momentum * self.velocity[index] + gradient
        self.velocity[index] = velocity
        return self.lr * velocity


class Adam:
    """Adam (Kingma & Ba 2015, arXiv 1412.6980), as torch.optim.Adam; each sample counts its own steps."""

    def __init__(
        self, images: Tensor, *, lr: float, betas: tuple[float, float] = (0.9, 0.999), tiny: float = 1e-8
    ) -> None:
        self.lr = lr
        self.betas = betas
        self.tiny = tiny
        self.mean, self.square = torch.zeros_like(images), torch.zeros_like(images)
        self.n = images.new_zeros(len(images), 1, 1, 1)

    def __call__(self, gradient: Tensor, index: Tensor) -> Tensor:
        first, second = self.betas
        mean = first * self.mean[index] + (1 - first) * gradient
        square = second * self.square[index] + (1 - second) * gradient**2
        n = self.n[index] + 1
        self.mean[index], self.square[index], self.n[index] = mean, square, n
        return self.lr * (mean / (1 - first**n)) / ((square / (1 - second**n)).sqrt() + self.tiny)


def direction(gradient: Tensor, norm: Norm) -> Tensor:
    """The steepest direction of length 1 in ``norm``; zero where the gradient is."""
    if norm is Norm.Linf:
        return gradient.sign()
    largest = gradient.abs().amax((1, 2, 3), keepdim=True)
    scaled = gradient / largest.where(largest > 0, 1)  # the squares of tiny gradients would be zero
    return scaled / length(scaled).clamp_min(1)


def length(delta: Tensor) -> Tensor:
    """L2 norm of each sample, (N, 1, 1, 1)."""
    return torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True)
