"""Killed after any batch and taken up again; and a cascade from small to large eps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from victims import attacked, make, stopped, victim_of

from sstune.attacks import Attack, GradientSource, Outcome, Victim, run_attack
from sstune.backbones import Network
from sstune.datasets import Split, evenly_spaced
from sstune.schema import Draws, Gradient, Target

Converted = Callable[[str], Network]
EPS = 24 / 255
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "fgsm": ("fgsm", {}),
    "pgd": ("pgd", {"steps": 2, "restarts": 3, "step_size": "eps/2"}),
    "pgd-targeted": ("pgd", {"steps": 2, "restarts": 2, "targeted": Target.random}),
    "mifgsm": ("mifgsm", {"steps": 2, "eight_bit": True}),
}


def same(one: Outcome, other: Outcome) -> bool:
    """In everything but the time taken."""
    return all(
        torch.equal(getattr(one, item.name), getattr(other, item.name))
        if isinstance(getattr(one, item.name), Tensor)
        else getattr(one, item.name) == getattr(other, item.name)
        for item in fields(Outcome)
        if item.name != "seconds"
    )


class Counting(Attack):
    """An attack that remembers which samples each of its stages was tried on, batch by batch."""

    def __init__(self, attack: Attack) -> None:
        super().__init__(attack.config, attack.seed)
        self.attack, self.stages = attack, attack.stages
        self.tried: list[tuple[str, list[int]]] = []

    def __call__(self, stage: str, model: Any, batch: Any, objective: Any, eps: float) -> Any:
        self.tried.append((stage, batch.samples.tolist()))
        return self.attack(stage, model, batch, objective, eps)


def begun(victim: Victim) -> Outcome:
    return victim.begin(30)


@pytest.fixture
def victim(converted: Converted, test_split: Split) -> Victim:
    return victim_of(converted("brsf"), test_split, torch.arange(120) + 1000)


@pytest.fixture
def source(victim: Victim) -> GradientSource:
    return GradientSource(Gradient.rule, victim.network, draws=Draws.forward, eot=2)


@pytest.mark.parametrize("method", METHODS)
class TestResumed:
    def attack(self, method: str) -> Counting:
        name, settings = METHODS[method]
        return Counting(make(name, **settings))

    def test_after_any_batch_it_is_bit_equal_and_repeats_none(
        self, method: str, victim: Victim, source: GradientSource
    ) -> None:
        whole = self.attack(method)
        expected = run_attack(victim, whole, source, EPS, 40, begun(victim))
        assert len(expected.images) == 30
        for kill_at in range(1, len(whole.tried) + 1):
            attack = self.attack(method)
            left = stopped(victim, attack, source, EPS, 40, kill_at)
            seconds = left.seconds
            found = run_attack(victim, attack, source, EPS, 40, left)
            assert same(found, expected)
            assert attack.tried == whole.tried
            assert 0 < seconds < found.seconds or kill_at == len(whole.tried)

    def test_with_another_batch_size_no_sample_is_left_out(
        self, method: str, victim: Victim, source: GradientSource
    ) -> None:
        """The largest batch that fits is another on another machine."""
        expected = run_attack(victim, self.attack(method), source, EPS, 120, begun(victim))
        for before, after in ((30, 120), (50, 7), (120, 1)):
            attack = self.attack(method)
            found = run_attack(
                victim, attack, source, EPS, after, stopped(victim, attack, source, EPS, before, 1)
            )
            assert same(found, expected)
            for stage in attack.stages:
                tried = [sample for name, samples in attack.tried if name == stage for sample in samples]
                assert tried == sorted(set(tried))

    def test_what_is_complete_is_not_begun_again(
        self, method: str, victim: Victim, source: GradientSource
    ) -> None:
        attack = self.attack(method)
        complete = run_attack(victim, attack, source, EPS, 64, begun(victim))
        n, before = len(attack.tried), copy.deepcopy(complete)
        assert same(run_attack(victim, attack, source, EPS, 64, complete), before)
        assert len(attack.tried) == n


class TestOutcome:
    def test_survives_a_file(self, victim: Victim, source: GradientSource, tmp_path: Any) -> None:
        for outcome in (
            begun(victim),
            victim.begin(),
            run_attack(victim, make("pgd"), source, EPS, 64, begun(victim)),
        ):
            np.savez_compressed(tmp_path / "a.npz", **outcome.arrays())
            with np.load(tmp_path / "a.npz") as saved:
                found = Outcome.from_arrays(dict(saved))
            assert same(found, outcome)
            assert found.seconds == outcome.seconds
            assert [getattr(found, item.name).dtype for item in fields(Outcome)[:6]] == [
                torch.float32, torch.int64, torch.int32, torch.float32, torch.bool, torch.uint8,
            ]  # fmt: skip
            found.achieved[:] = 1  # is its own
            found.steps_to_success[:] = 3
            assert found.stage == outcome.stage

    def test_at_the_beginning_what_is_wrong_is_broken(self) -> None:
        clean, images = torch.tensor([True, False, True]), torch.ones(2, 1, 1, 1, dtype=torch.uint8)
        outcome = Outcome.begin(clean, torch.tensor([3, 1, 4]), images)
        assert (outcome.robust.tolist(), outcome.success.tolist()) == (clean.tolist(), [False, True, False])
        assert (outcome.steps_to_success.tolist(), outcome.entered.tolist()) == ([-1] * 3, clean.tolist())
        for tensor in (outcome.achieved, outcome.predictions, outcome.entered, outcome.images):
            tensor.zero_()
        assert clean.tolist() == [True, False, True]
        assert images.tolist() == [[[[1]]], [[[1]]]]


class TestCascade:
    EPS = (4 / 255, 12 / 255, 24 / 255, 40 / 255)

    def run(self, attack: Attack, network: Network, split: Split) -> list[Outcome]:
        victim, source = victim_of(network, split), GradientSource(Gradient.exact, network)
        found: list[Outcome] = []
        for eps in self.EPS:
            start = found[-1].at_larger_eps() if found else begun(victim)
            found.append(run_attack(victim, attack, source, eps, 50, start))
        return found

    @pytest.mark.parametrize("method", METHODS)
    def test_what_broke_stays_so_and_is_not_attacked_again(
        self, method: str, network: Network, test_split: Split
    ) -> None:
        name, settings = METHODS[method]
        attack = Counting(make(name, **settings))
        found = self.run(attack, network, test_split)
        before = found[0]
        for outcome in found[1:]:
            assert (outcome.success >= before.success).all()
            assert (outcome.robust <= before.robust).all()
            assert (
                outcome.steps_to_success[before.success]
                == torch.where(before.steps_to_success < 0, -1, 0)[before.success]
            ).all()
            kept = before.success[evenly_spaced(30, 120)]
            assert torch.equal(outcome.images[kept], before.images[kept])
            before = outcome
        starts = [begun(victim_of(network, test_split)), *found[:-1]]
        first = sum(len(samples) for stage, samples in attack.tried if stage == attack.stages[0])
        assert first == sum(int((~outcome.success).sum()) for outcome in starts)

    @pytest.mark.parametrize("method", METHODS)
    def test_is_never_above_the_plain_attack(self, method: str, network: Network, test_split: Split) -> None:
        """And equal to it but for samples that a smaller eps broke and this one did not."""
        name, settings = METHODS[method]
        attack = make(name, **settings)
        broken = torch.zeros(120, dtype=torch.bool)
        for eps, outcome in zip(self.EPS, self.run(attack, network, test_split), strict=True):
            plain = attacked(network, attack, test_split, eps, batch_size=50)
            broken |= plain.success
            assert torch.equal(outcome.success, broken)
            assert (outcome.robust <= plain.robust).all()

    def test_makes_accuracy_fall_where_larger_steps_overshoot(self) -> None:
        class Narrow(nn.Module):
            """Wrong where the mean grey value is about 0.6."""

            def forward(self, images: Tensor) -> Tensor:
                mean = images.mean((1, 2, 3))
                return torch.stack([5 - mean, mean + 10 * ((mean - 0.6).abs() < 0.05)], 1)

        split = Split(torch.full((3, 1, 2, 2), 128, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))
        victim = victim_of(Narrow(), split, clean=torch.ones(3, dtype=torch.bool))
        source, attack = GradientSource(Gradient.exact, victim.network), make("fgsm")
        small, large = (run_attack(victim, attack, source, eps, 2) for eps in (0.1, 0.3))
        assert (small.robust.tolist(), large.robust.tolist()) == ([False] * 3, [True] * 3)
        assert not run_attack(victim, attack, source, 0.3, 2, small.at_larger_eps()).robust.any()

    def test_leaves_the_smaller_outcome_alone(self, network: Network, test_split: Split) -> None:
        victim, source = victim_of(network, test_split), GradientSource(Gradient.exact, network)
        small = run_attack(victim, make("pgd"), source, self.EPS[0], 50, begun(victim))
        before = copy.deepcopy(small)
        run_attack(victim, make("pgd"), source, self.EPS[-1], 50, small.at_larger_eps())
        assert same(small, before)
        assert small.at_larger_eps().seconds == 0
