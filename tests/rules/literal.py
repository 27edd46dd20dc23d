"""Trained feedback to the letter of the papers: with parameters of its own, that the optimiser trains.

And a network small enough to train it in float64 beside the library's closed forms.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from oracle import gaussian, learned, oracle, product
from torch import Tensor, nn

STEPS = 35

Optimizer = Callable[[Any], torch.optim.Optimizer]
SGD: dict[str, Optimizer] = {
    "plain": lambda p: torch.optim.SGD(p, lr=0.1),
    "decay": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.05),
    "dampened": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, dampening=0.5, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.05),
}
ADAMW: dict[str, Optimizer] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=1.0),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=1.0, betas=(0.5, 0.9), amsgrad=True),
}


def network() -> nn.Sequential:
    """Every kind of layer; dense, grouped and transposed in groups."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.Tanh(),
        nn.ConvTranspose2d(6, 4, 2, groups=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(64, 3),
    ).double()


LAYERS = ["0", "2", "4", "7"]


class Mirror(nn.Module):
    """V as a parameter that gets every gradient of W (Akrout et al., eq. 16-17)."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.v = nn.Parameter(start.clone())

    def matrix(self, layer: nn.Module) -> Tensor:
        return self.v.detach()

    def learn(self, layer: nn.Module, grad_weight: Tensor) -> None:
        self.v.grad = grad_weight.clone()


class Product(nn.Module):
    """V = B R with R a parameter, dR = B^T dW; R is of shape (groups, mid, inputs x taps)."""

    def __init__(self, fixed: Tensor, trained: Tensor, mask: Tensor | None = None) -> None:
        super().__init__()
        self.b, self.mask = fixed, mask
        self.r = nn.Parameter(trained.clone())

    def matrix(self, layer: nn.Module) -> Tensor:
        return product(layer, self.b, self.r.detach())

    def learn(self, layer: nn.Module, grad_weight: Tensor) -> None:
        grad = learned(layer, self.b, grad_weight)
        self.r.grad = grad if self.mask is None else grad * self.mask


class Literal(nn.Module):
    """A layer with such feedback."""

    def __init__(self, plain: nn.Module, feedback: Mirror | Product) -> None:
        super().__init__()
        self.plain, self.feedback = plain, feedback

    def forward(self, x: Tensor) -> Tensor:
        return oracle(self.plain, self.feedback.matrix(self.plain), x)

    def matrix(self) -> Tensor:
        return self.feedback.matrix(self.plain)


def literal(plain: nn.Sequential, feedback: Callable[[str], Mirror | Product]) -> nn.Sequential:
    """``plain`` with ``feedback(name)`` in each layer."""
    copied = copy.deepcopy(plain)
    return nn.Sequential(
        *(
            Literal(module, feedback(name)) if name in LAYERS else module
            for name, module in copied.named_children()
        )
    )


def train(network: nn.Module, make: Optimizer, steps: int = STEPS) -> Iterator[int]:
    """Trains under a learning rate and a weight decay that change; yields after every step."""
    optimizer = make(network.parameters())
    (group,) = optimizer.param_groups
    rate, decay = group["lr"], group["weight_decay"]
    for step in range(steps):
        group["lr"] = rate * (1 + 0.5 * math.sin(step))
        group["weight_decay"] = 0.0 if step % 5 == 4 else decay * (1 + 0.5 * math.cos(2 * step))
        optimizer.zero_grad()
        loss = F.cross_entropy(network(gaussian(3, 2, 5, 5, seed=step)), torch.arange(3))
        loss.backward()
        for layer in network.modules():
            if isinstance(layer, Literal):
                assert isinstance(layer.plain.weight.grad, Tensor)
                layer.feedback.learn(layer.plain, layer.plain.weight.grad)
        optimizer.step()
        yield step


def difference(one: Tensor, other: Tensor) -> float:
    """Relative."""
    return float((one.detach() - other.detach()).norm() / other.detach().norm())


def assert_train_alike(one: Any, to_the_letter: Any, make: Optimizer) -> None:
    """Equal weights and equal feedback after every step, and weights that did move."""
    before = {name: one[int(name)].weight.detach().clone() for name in LAYERS}
    for _ in zip(train(one, make), train(to_the_letter, make), strict=True):
        for name in LAYERS:
            layer, expected = one[int(name)], to_the_letter[int(name)]
            assert difference(layer.weight, expected.plain.weight) < 1e-10
            assert difference(layer.bias, expected.plain.bias) < 1e-10
            assert difference(layer.feedback.matrix(layer.weight), expected.matrix()) < 1e-10
    assert all(difference(one[int(name)].weight, before[name]) > 0.01 for name in LAYERS)
