"""Check D0: with eps = 0 nothing changes, and planted faults of attacks show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from victims import OWN, Spy, attacked, make, victim_of

from sstune.attacks import (
    AttackedModel,
    AttackResult,
    GradientSource,
    InvalidAttack,
    check_zero_eps,
    run_attack,
)
from sstune.backbones import Network
from sstune.datasets import Split
from sstune.schema import Draws, Gradient, Norm, Target

RULES = ["usf", "frsf", "brsf", "fa"]
Converted = Callable[[str], Network]


class TestZeroEps:
    @pytest.mark.parametrize("name", ["bp", *RULES, "brsf-forward"])
    @pytest.mark.parametrize("gradient", list(Gradient))
    def test_changes_no_judgement(
        self, name: str, gradient: Gradient, converted: Converted, test_split: Split
    ) -> None:
        network = converted(name)
        victim, source = (
            victim_of(network, test_split),
            GradientSource(gradient, network, draws=Draws.forward),
        )
        for attack in (
            make("fgsm"),
            make("pgd", restarts=2, steps=2),
            make("pgd", step_size="2/255", steps=2, norm=Norm.L2),
            make("mifgsm", steps=2, targeted=Target.random),
            make("fgsm", eight_bit=True, norm=Norm.L2),
        ):
            assert torch.equal(run_attack(victim, attack, source, 0.0, 64).robust, victim.clean)
            check_zero_eps(victim, attack, source, 64)

    def test_is_checked_in_few_steps(self, network: Network, test_split: Split) -> None:
        attack: Any = make("pgd", steps=40, restarts=10).with_tiny_budget()
        assert (attack.config.steps, attack.config.restarts, len(attack.stages)) == (2, 2, 2)
        assert make("pgd", steps=1).with_tiny_budget().config == make("pgd", steps=1).config
        assert make("fgsm", seed=3).with_tiny_budget().seed == 3

    def test_only_256_samples_are_checked(self, network: Network, test_split: Split) -> None:
        split, spy = test_split.take(torch.arange(300) % len(test_split)), Spy()
        victim = victim_of(network, split)
        check_zero_eps(victim, spy, GradientSource(Gradient.exact, network), 64)
        some = victim.some(256)
        assert spy.samples[""] == some.samples[some.clean].tolist()


class Faulty(Spy):
    """An attack with one planted fault."""

    def __init__(self, fault: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.fault = fault

    def __call__(
        self, stage: str, model: AttackedModel, batch: Any, objective: Any, eps: float
    ) -> AttackResult:
        return AttackResult(self.fault(model, batch.images), torch.full_like(batch.targets, -1))


def train_mode(network: nn.Module, images: Tensor) -> Tensor:
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.9
    network.train()
    return images


def changes_weights(network: nn.Module, images: Tensor) -> Tensor:
    for parameter in network.parameters():
        parameter.data.neg_()
    return images


class TestPlantedFaults:
    @pytest.mark.parametrize("gradient", OWN)
    @pytest.mark.parametrize(
        ("fault", "message"),
        [
            (train_mode, r"spy with eps = 0 changes the judgement of \d+ of 120 samples"),
            (changes_weights, r"spy with eps = 0 changes the judgement of \d+ of 120 samples"),
            (lambda network, images: 1 - images, "away, eps is 0"),
            (lambda network, images: images.roll(1, 0), "away, eps is 0"),
            (lambda network, images: images - 1, r"leaves \[0, 1\]"),
            (lambda network, images: images / 0, "not finite"),
            (lambda network, images: images[:, :, :4], r"of shape \(64, 1, 8, 8\) became \(64, 1, 4, 8\)"),
        ],
    )
    def test_show_at_zero_eps(
        self, fault: Any, message: str, gradient: Gradient, network: Network, test_split: Split
    ) -> None:
        victim = victim_of(network, test_split)
        with pytest.raises(InvalidAttack, match=message):
            check_zero_eps(victim, Faulty(fault), GradientSource(gradient, network), 64)

    @pytest.mark.parametrize("eps", [0.0, 0.1])
    def test_show_at_any_eps_and_the_network_is_as_before(
        self, eps: float, network: Network, test_split: Split
    ) -> None:
        network.train()
        with pytest.raises(InvalidAttack, match=r"leaves \[0, 1\]"):
            attacked(network, Faulty(lambda network, images: images + 1), test_split, eps)
        assert all(module.training for module in network.modules())
        assert all(parameter.requires_grad for parameter in network.parameters())
