"""Robust accuracy: whose gradient it is, and that figures depend on nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from victims import ASCENTS, OWN, attacked, gradients, judged, make, right, victim_of

from sstune.attacks import Attack, GradientSource, gradient_mode, run_attack
from sstune.backbones import Network
from sstune.datasets import Split
from sstune.schema import Draws, Gradient, Norm, Target

RULES = ["usf", "frsf", "brsf", "fa"]
Converted = Callable[[str], Network]


def input_gradients(network: nn.Module, split: Split) -> Tensor:
    return gradients(network, split.images / 255, split.targets)


class TestGradients:
    """Sample by sample."""

    @pytest.mark.parametrize("name", ["bp", "sham"])
    def test_both_are_those_of_the_plain_network_for_bp(
        self, name: str, network: Network, converted: Converted, test_split: Split
    ) -> None:
        plain, other = input_gradients(network, test_split), converted(name)
        for gradient in Gradient:
            with gradient_mode(other, gradient):
                assert torch.equal(input_gradients(other, test_split), plain)

    @pytest.mark.parametrize("name", RULES)
    def test_of_a_rule_differ_and_every_other_is_the_plain_networks(
        self, name: str, network: Network, converted: Converted, test_split: Split
    ) -> None:
        plain, other = input_gradients(network, test_split), converted(name)
        for gradient in set(Gradient) - {Gradient.rule}:
            with gradient_mode(other, gradient):
                assert torch.equal(input_gradients(other, test_split), plain)
        with gradient_mode(other, Gradient.rule):
            rule = input_gradients(other, test_split)
        assert (rule != plain).flatten(1).any(1).all()
        cosine = F.cosine_similarity(rule.flatten(1), plain.flatten(1))
        assert float(cosine.max()) < 0.99

    @pytest.mark.parametrize("name", RULES)
    @pytest.mark.parametrize("attack", ASCENTS)
    def test_reach_the_attack(
        self, name: str, attack: str, network: Network, converted: Converted, test_split: Split
    ) -> None:
        other, eps, method = converted(name), 24 / 255, make(attack)
        plain = right(network, method, test_split, eps)
        assert torch.equal(right(other, method, test_split, eps, Gradient.exact), plain)
        assert not torch.equal(right(other, method, test_split, eps, Gradient.rule), plain)

    def test_fa_masks_where_exact_does_not(self, converted: Converted, test_split: Split) -> None:
        """A gradient that has nothing to do with the network attacks hardly better than noise."""
        other = converted("fa")
        kept = {g: int(right(other, make("pgd"), test_split, 24 / 255, g).sum()) for g in OWN}
        assert kept[Gradient.rule] > kept[Gradient.exact] + 0.2 * len(test_split)

    def test_the_mean_over_draws_attacks_brsf_better_than_one(
        self, converted: Converted, test_split: Split
    ) -> None:
        """Athalye et al. 2018: what is random in the backward pass averages out."""
        network = converted("brsf")
        victim, attack = victim_of(network, test_split), make("pgd", steps=5)
        left = []
        for draws, eot in ((Draws.frozen, 1), (Draws.forward, 12)):
            source = GradientSource(Gradient.rule, network, draws=draws, eot=eot)
            left.append(int(run_attack(victim, attack, source, 24 / 255, 64).robust.sum()))
        exact = int(right(network, attack, test_split, 24 / 255).sum())
        assert left[0] > left[1] > exact

    @pytest.mark.parametrize("random_start", [True, False])
    def test_exact_pgd_with_a_large_eps_leaves_nothing(
        self, random_start: bool, converted: Converted, test_split: Split
    ) -> None:
        method = make("pgd", steps=20, step_size="eps/4", random_start=random_start)
        assert int(judged(converted("usf"), test_split).sum()) > 0.9 * len(test_split)
        assert int(right(converted("usf"), method, test_split, 0.4).sum()) == 0


@pytest.mark.parametrize("attack", ASCENTS)
class TestIndependence:
    """Of batch size, of order, and of the other samples."""

    eps = 24 / 255

    def make(self, attack: str) -> Attack:
        return make(attack) if attack == "fgsm" else make(attack, steps=4)

    @pytest.mark.parametrize("batch_size", [1, 7, 120, 1000])
    def test_of_batch_size(self, attack: str, batch_size: int, network: Network, test_split: Split) -> None:
        method = self.make(attack)
        expected = attacked(network, method, test_split, self.eps, batch_size=32)
        assert 0 < int(expected.robust.sum()) < int(judged(network, test_split).sum())
        found = attacked(network, method, test_split, self.eps, batch_size=batch_size)
        assert torch.equal(found.robust, expected.robust)
        assert torch.equal(found.steps_to_success, expected.steps_to_success)

    def test_of_batch_size_where_feedback_is_drawn(
        self, attack: str, converted: Converted, test_split: Split
    ) -> None:
        network = converted("brsf")
        victim = victim_of(network, test_split)
        source = GradientSource(Gradient.rule, network, draws=Draws.forward, eot=2)
        found = [run_attack(victim, self.make(attack), source, 0.15, size).robust for size in (16, 120)]
        assert torch.equal(*found)

    @pytest.mark.parametrize("targeted", [None, *Target])
    def test_of_order_and_selection(
        self, attack: str, targeted: Target | None, network: Network, test_split: Split
    ) -> None:
        method = self.make(attack)
        method.config = replace(method.config, targeted=targeted)
        expected = attacked(network, method, test_split, self.eps)
        order = torch.randperm(len(test_split), generator=torch.Generator().manual_seed(0))
        for chosen in (order, order[:50]):
            found = attacked(network, method, test_split.take(chosen), self.eps, samples=chosen)
            assert torch.equal(found.robust, expected.robust[chosen])
            assert torch.equal(found.success, expected.success[chosen])

    def test_of_the_global_random_state(self, attack: str, network: Network, test_split: Split) -> None:
        found = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            found.append(right(network, make(attack), test_split, self.eps))
            assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(*found)


def test_restarts_only_ever_break_more(network: Network, test_split: Split) -> None:
    kept = [
        right(
            network, make("pgd", restarts=n, steps=1, step_size="eps/2"), test_split, 40 / 255, batch_size=50
        )
        for n in (1, 2, 10)
    ]
    assert (kept[1] <= kept[0]).all()
    assert (kept[2] <= kept[1]).all()
    assert int(kept[2].sum()) < int(kept[0].sum())


@pytest.mark.parametrize("norm", [Norm.Linf, Norm.L2])
def test_accuracy_falls_with_eps_and_pgd_is_no_weaker_than_fgsm(
    norm: Norm, network: Network, test_split: Split
) -> None:
    sizes = (0, 4 / 255, 16 / 255, 32 / 255) if norm is Norm.Linf else (0, 0.2, 0.8, 1.6)
    counts = {
        name: [int(right(network, make(name, norm=norm), test_split, eps).sum()) for eps in sizes]
        for name in ASCENTS
    }
    for name in counts:
        assert counts[name][0] == int(judged(network, test_split).sum())
        assert counts[name] == sorted(counts[name], reverse=True)
        assert counts[name][0] > counts[name][-1]
    assert all(p <= f for p, f in zip(counts["pgd"], counts["fgsm"], strict=True))
