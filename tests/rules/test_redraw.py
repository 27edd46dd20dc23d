"""Draws by name, and feedback that keeps still while somebody looks: what attacks need of brsf."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from variants import EVERY

from sstune.rules import begin_step, convert, feedback_layers, frozen_feedback, redraw
from sstune.schema import Redraw, RuleConfig, Scale

Rule = Callable[..., RuleConfig]
IMAGES = torch.rand(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))


def converted(rule: RuleConfig, seed: int = 0) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    convert(network, rule, seed, example=IMAGES)
    return network


def magnitudes(network: nn.Module) -> list[Tensor]:
    feedbacks: list[Any] = [layer.feedback for layer in feedback_layers(network).values()]
    return [feedback.magnitude.clone() for feedback in feedbacks]


def state(network: nn.Module) -> dict[str, Any]:
    """Everything that a checkpoint would hold, the numbers of draws among it."""
    return copy.deepcopy(network.state_dict())


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[key], other[key]) if isinstance(one[key], Tensor) else one[key] == other[key]
        for key in one
    )


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class TestRedraw:
    @pytest.mark.parametrize("when", Redraw)
    @pytest.mark.parametrize("scale", Scale)
    def test_depends_on_the_key_and_not_on_the_past(
        self, when: Redraw, scale: Scale, rule_config: Rule
    ) -> None:
        network = converted(rule_config("brsf", scale, redraw=when))
        drawn = {}
        for key in (5, 6, 2**62, 5):
            redraw(network, key)
            assert equal(drawn.setdefault(key, magnitudes(network)), magnitudes(network))
            begin_step(network)
            network(IMAGES)
        assert not equal(drawn[5], drawn[6])
        other = converted(rule_config("brsf", scale, redraw=when), seed=1)
        redraw(other, 5)
        assert not any(torch.equal(a, b) for a, b in zip(drawn[5], magnitudes(other), strict=True))

    def test_draws_like_training_does(self, rule_config: Rule) -> None:
        """Uniform magnitudes >= 0 of RMS 1, one stream for each layer, and none of training's draws."""
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 100))
        convert(network, rule_config("brsf"), seed=0)
        trained = magnitudes(network)
        redraw(network, 0)
        first, second = drawn = magnitudes(network)
        assert not torch.equal(first, second)
        assert not any(torch.equal(a, b) for a, b in zip(trained, drawn, strict=True))
        for magnitude in drawn:
            assert float(magnitude.min()) >= 0
            assert float(magnitude.square().mean()) == pytest.approx(1, rel=1e-4)
            assert float(magnitude.mean()) == pytest.approx(3**0.5 / 2, rel=0.02)

    def test_leaves_trainings_own_draws_as_they_were(self, rule_config: Rule) -> None:
        plain, interrupted = (converted(rule_config("brsf")) for _ in range(2))
        redraw(interrupted, 3)
        for network in (plain, interrupted):
            begin_step(network)
        assert same(state(plain), state(interrupted))

    def test_a_pending_backward_keeps_its_own(self, rule_config: Rule) -> None:
        network, leaves = converted(rule_config("brsf")), []
        for overtaken in (False, True):
            leaf = IMAGES.clone().requires_grad_()
            redraw(network, 1)
            loss = network(leaf).sum()
            if overtaken:
                redraw(network, 2)
            loss.backward()
            leaves.append(leaf.grad)
        assert torch.equal(*leaves)

    @pytest.mark.parametrize("name", [name for name in EVERY if name != "brsf"])
    def test_of_every_other_rule_does_nothing(self, name: str, rule_config: Rule) -> None:
        network = converted(rule_config(name))
        before = state(network)
        redraw(network, 3)
        assert same(state(network), before)

    def test_of_a_plain_network_does_nothing(self) -> None:
        layer = nn.Linear(2, 2)
        before = copy.deepcopy(layer.state_dict())
        redraw(layer, 3)
        assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


class TestFrozenFeedback:
    @pytest.mark.parametrize("when", Redraw)
    def test_only_redraw_draws_inside_and_all_is_as_before_afterwards(
        self, when: Redraw, rule_config: Rule
    ) -> None:
        network = converted(rule_config("brsf", redraw=when))
        network(IMAGES)
        before = state(network)
        with frozen_feedback(network):
            for _ in range(2):
                network(IMAGES)
            assert same(state(network), before)
            redraw(network, 3)
            assert not same(state(network), before)
        assert same(state(network), before)
        network(IMAGES)
        assert same(state(network), before) == (when is Redraw.step)

    @pytest.mark.parametrize("when", Redraw)
    def test_nests(self, when: Redraw, rule_config: Rule) -> None:
        network = converted(rule_config("brsf", redraw=when))
        with frozen_feedback(network):
            redraw(network, 1)
            inside = magnitudes(network)
            with frozen_feedback(network):
                redraw(network, 2)
                assert not equal(magnitudes(network), inside)
            assert equal(magnitudes(network), inside)
            network(IMAGES)
            assert equal(magnitudes(network), inside)

    @pytest.mark.parametrize("when", Redraw)
    def test_ends_with_an_exception(self, when: Redraw, rule_config: Rule) -> None:
        network = converted(rule_config("brsf", redraw=when))
        before = state(network)

        def fail() -> None:
            redraw(network, 1)
            network(IMAGES[:, :1])

        with pytest.raises(RuntimeError, match="channels"), frozen_feedback(network):
            fail()
        assert same(state(network), before)
        network(IMAGES)
        assert same(state(network), before) == (when is Redraw.step)

    @pytest.mark.parametrize("name", EVERY)
    def test_training_afterwards_is_as_if_nothing_had_been(self, name: str, rule_config: Rule) -> None:
        plain, looked_at = (converted(rule_config(name)) for _ in range(2))
        with frozen_feedback(looked_at):
            looked_at(IMAGES)
            redraw(looked_at, 7)
        for network in (plain, looked_at):
            begin_step(network)
            network(IMAGES).sum().backward()
        assert same(state(plain), state(looked_at))
        for one, other in zip(plain.parameters(), looked_at.parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None)
            assert one.grad is None or torch.equal(one.grad, other.grad)
