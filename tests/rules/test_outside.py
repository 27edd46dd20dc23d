"""Rules of a third party, added without touching sstune: a random one, and a direct one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from oracle import EXACT, gaussian, oracle
from torch import Tensor, nn

from sstune.attacks import AttackedModel, gradient_mode
from sstune.attacks.ascent import loss_gradient
from sstune.rules import (
    FEEDBACKS,
    Feedback,
    alignment,
    begin_step,
    convert,
    exact_gradients,
    feedback_layers,
    frozen_feedback,
    redraw,
)
from sstune.rules.direct import DirectFeedback
from sstune.rules.feedback import Pathway, fixed, weight_of
from sstune.schema import Draws, Gradient, Redraw, RuleConfig, RunConfig, Scale
from sstune.seeding import seed_from
from sstune.tasks import Objective
from sstune.validation.attacks import attack_problems

X = gaussian(4, 6)


@dataclass
class TernaryConfig(RuleConfig):
    """``redraw`` makes it a random rule."""

    redraw: Redraw = Redraw.step


class Ternary(Feedback):
    """V is -1, 0 or 1 at random, drawn anew at each step, or in each forward pass."""

    matrix_: Tensor

    def __init__(self, module: nn.Module, rule: TernaryConfig, seed: int, layer: str) -> None:
        super().__init__(module, rule, seed, layer)
        self.redraw_when, self.n_draws = rule.redraw, 0
        self.register_buffer("matrix_", torch.zeros_like(weight_of(module)))
        self.draw_next()

    def draw_next(self) -> None:
        self.redraw(-1 - self.n_draws)
        self.n_draws += 1

    def begin_step(self, weight: Tensor) -> None:
        if self.redraw_when is Redraw.step:
            self.draw_next()

    def redraw(self, key: int) -> None:
        generator = torch.Generator().manual_seed(seed_from(self.seed, "ternary", self.layer, key))
        self.matrix_ = torch.randint(-1, 2, self.matrix_.shape, generator=generator).to(self.matrix_)

    def forward(self, weight: Tensor) -> Pathway:
        if self.redraw_when is Redraw.forward:
            self.draw_next()
        return self.current_pathway(weight)

    def current_pathway(self, weight: Tensor) -> Pathway:
        return Pathway(fixed, (None, self.matrix_))


class Binary(DirectFeedback):
    """A direct rule whose projections are +1 and -1."""

    def initial_projection(self, sample: torch.Size, outputs: int, weight: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed_from(self.seed, "binary", self.layer))
        return torch.randint(0, 2, (outputs, *sample), generator=generator).to(weight) * 2 - 1


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules are known within a test only."""
    monkeypatch.setattr(FEEDBACKS, "_entries", dict(FEEDBACKS._entries))
    FEEDBACKS.register("ternary")(Ternary)
    FEEDBACKS.register("binary")(Binary)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def ternary(when: Redraw = Redraw.step) -> nn.Sequential:
    network = mlp()
    convert(network, TernaryConfig("ternary", redraw=when), seed=0)
    return network


def binary() -> nn.Sequential:
    network = mlp()
    convert(network, RuleConfig("binary", Scale.unit), seed=0, example=X)
    return network


def gradients(network: nn.Module, loss: Tensor, x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [x, *network.parameters()]))


def matrices(network: nn.Module) -> list[Tensor]:
    feedbacks: list[Any] = [layer.feedback for layer in feedback_layers(network).values()]
    return [each.matrix_ for each in feedbacks]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("when", Redraw)
def test_a_random_rules_gradients_equal_the_oracle(when: Redraw) -> None:
    network, plain, x, y = ternary(when), mlp(), X.clone().requires_grad_(), X.clone().requires_grad_()
    for _ in range(2):
        begin_step(network)
        found = gradients(network, network(x).square().sum(), x)
        first, second = matrices(network)
        outputs = oracle(plain[2], second, torch.tanh(oracle(plain[0], first, y)))
        for one, other in zip(found, gradients(plain, outputs.square().sum(), y), strict=True):
            torch.testing.assert_close(one, other, **EXACT)


def test_a_direct_rules_gradients_equal_the_chain_rule() -> None:
    """With e = dL/dy and h = tanh(W1 x + b1): dW2 = e^T h, dW1 = ((e B2) (1 - h^2))^T x, dx = e B1."""
    network, x = binary(), X.clone().requires_grad_()
    first, second = (layer.feedback.projection for layer in feedback_layers(network).values())
    assert set(first.unique().tolist()) == {-1.0, 1.0}
    y = network(x)
    found = gradients(network, y.square().sum(), x)
    hidden, error = torch.tanh(network[0](X)).detach(), 2 * y.detach()
    delta = error @ second * (1 - hidden**2)
    expected = [error @ first, delta.T @ X, delta.sum(0), error.T @ hidden, error.sum(0)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


@pytest.mark.parametrize("make", [ternary, lambda: ternary(Redraw.forward), binary])
def test_exact_gradients_are_the_true_ones(make: Any) -> None:
    network, plain, x = make(), mlp(), X.clone().requires_grad_()
    with exact_gradients(network):
        found = gradients(network, network(x).square().sum(), x)
    for one, other in zip(found, gradients(plain, plain(x).square().sum(), x), strict=True):
        torch.testing.assert_close(one, other, **EXACT)


@pytest.mark.parametrize("when", Redraw)
def test_frozen_feedback_freezes_a_random_rule(when: Redraw) -> None:
    network = ternary(when)
    network(X)
    before = matrices(network)
    with frozen_feedback(network):
        network(X)
        assert equal(matrices(network), before)
        redraw(network, 3)
        third = matrices(network)
        assert not equal(third, before)
        network(X)
        assert equal(matrices(network), third)
    assert equal(matrices(network), before)
    network(X)
    assert equal(matrices(network), before) == (when is Redraw.step)


def test_alignment_measures_both_rules() -> None:
    for network in (ternary(Redraw.forward), binary()):
        before = copy.deepcopy(network.state_dict())
        entries = alignment(network, lambda network=network: network(X).square().sum())
        assert [entry.layer for entry in entries] == ["0", "2"]
        assert all(-1 <= entry.update_cosine <= 1 for entry in entries)
        assert entries[1].update_cosine == pytest.approx(1)  # the error at the outputs is exact
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert 60 < alignment(ternary())[0].angle < 120
    assert alignment(binary())[0].angle != alignment(binary())[0].angle  # NaN: a direct rule has no V


class Squares(Objective):
    """Larger outputs."""

    def loss(self, outputs: Tensor, images: Tensor, progress: float) -> Tensor:
        return outputs.square().sum(1)

    def achieved(self, outputs: Tensor) -> Tensor:
        return torch.zeros(len(outputs))

    def take(self, index: Tensor) -> Squares:
        return self


@pytest.mark.parametrize("when", Redraw)
def test_attacks_average_a_random_rules_gradient_over_draws(when: Redraw) -> None:
    """With eot=3 it is the oracle's mean over the draws that the attack's key names; the draws are undone."""
    network, plain = ternary(when), mlp()
    before = matrices(network)
    with gradient_mode(network, Gradient.rule):
        _, found = loss_gradient(AttackedModel(network, Draws.forward, 3, ("key",)), X, Squares())
        expected = []
        for draw in range(3):
            redraw(network, seed_from("attack", "key", draw))
            first, second = matrices(network)
            y = X.clone().requires_grad_()
            outputs = oracle(plain[2], second, torch.tanh(oracle(plain[0], first, y)))
            expected += torch.autograd.grad(outputs.square().sum(), y)
    torch.testing.assert_close(found, sum(expected) / 3, **EXACT)
    assert not torch.allclose(expected[0], expected[1])
    assert equal(matrices(network), before)


def test_a_random_rule_needs_redrawing_for_averages(complete: Callable[..., RunConfig]) -> None:
    config = complete("attack", attack="pgd")
    config = replace(config, attack=replace(config.attack, eot=2))
    text = "attack.eot: averages gradients of different draws, so ternary needs attack.redraw=forward"
    for rule, expected in [
        (TernaryConfig("ternary"), [text]),
        (TernaryConfig("ternary", redraw=Redraw.forward), []),
        (RuleConfig("binary"), []),
    ]:
        assert list(attack_problems(replace(config, rule=rule))) == expected
