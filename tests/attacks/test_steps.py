"""Step rules against torch's optimisers and the papers' formulas, also where samples leave on the way."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from sstune.attacks.steps import Adam, FixedLength, Momentum, Sgd, StepRule
from sstune.schema import Norm

N, STEPS = 5, 7
# The samples that are open in each step: all, then fewer and fewer.
OPEN = [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 2, 3, 4], [0, 2, 3, 4], [2, 4], [2, 4], [2]]


def gradients() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(N, 2, 3, 3, generator=generator, dtype=torch.float64) for _ in range(STEPS)]


def moved(rule: StepRule) -> Tensor:
    """Where the samples are in the end, from zero."""
    position = torch.zeros(N, 2, 3, 3, dtype=torch.float64)
    for gradient, still in zip(gradients(), OPEN, strict=True):
        index = torch.tensor(still)
        position[index] += rule(gradient[index], index)
    return position


def by_optimizer(make: Callable[[list[Tensor]], torch.optim.Optimizer]) -> Tensor:
    """Each sample alone, maximised by torch, for as many steps as it is open."""
    ends = []
    for sample in range(N):
        parameter = torch.zeros(2, 3, 3, dtype=torch.float64, requires_grad=True)
        optimizer = make([parameter])
        for gradient, still in zip(gradients(), OPEN, strict=True):
            if sample in still:
                parameter.grad = gradient[sample].clone()
                optimizer.step()
        ends.append(parameter.detach())
    return torch.stack(ends)


OPTIMIZERS: list[tuple[Any, Any]] = [
    (partial(Sgd, lr=0.3), partial(torch.optim.SGD, lr=0.3, maximize=True)),
    (partial(Sgd, lr=0.3, momentum=0.9), partial(torch.optim.SGD, lr=0.3, momentum=0.9, maximize=True)),
    (partial(Adam, lr=0.01), partial(torch.optim.Adam, lr=0.01, maximize=True)),
    (
        partial(Adam, lr=0.02, betas=(0.5, 0.9), tiny=1e-3),
        partial(torch.optim.Adam, lr=0.02, betas=(0.5, 0.9), eps=1e-3, maximize=True),
    ),
]


@pytest.mark.parametrize(("rule", "optimizer"), OPTIMIZERS)
def test_equals_torchs_optimiser_sample_by_sample(rule: Any, optimizer: Any) -> None:
    images = torch.zeros(N, 2, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(moved(rule(images)), by_optimizer(optimizer), rtol=1e-12, atol=1e-15)


def test_momentum_is_equation_6_of_the_paper() -> None:
    """g <- decay g + gradient / ||gradient||_1; the mean in place of the sum changes no sign."""
    images = torch.zeros(N, 2, 3, 3, dtype=torch.float64)
    expected = torch.zeros_like(images)
    for sample in range(N):
        velocity = torch.zeros(2, 3, 3, dtype=torch.float64)
        for gradient, still in zip(gradients(), OPEN, strict=True):
            if sample in still:
                velocity = 0.7 * velocity + gradient[sample] / gradient[sample].abs().sum()
                expected[sample] += 0.1 * velocity.sign()
    found = moved(Momentum(images, size=0.1, norm=Norm.Linf, decay=0.7))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("norm", Norm)
def test_steps_have_the_length_asked_for(norm: Norm) -> None:
    step = FixedLength(torch.zeros(N, 2, 3, 3), size=0.25, norm=norm)(gradients()[0], torch.arange(N))
    flat = step.flatten(1)
    lengths = flat.abs().amax(1) if norm is Norm.Linf else flat.norm(dim=1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 0.25))
