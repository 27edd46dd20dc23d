"""What becomes of each sample: what is attacked, what counts as a success, targets, and surrogates."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from victims import (
    ASCENTS,
    CPU,
    Labelled,
    Spy,
    attacked,
    judged,
    labelled,
    make,
    objective_of,
    right,
    victim_of,
)

from sstune.attacks import (
    AttackedModel,
    GradientSource,
    check_zero_eps,
    gradient_mode,
    largest_batch,
    run_attack,
)
from sstune.backbones import Network
from sstune.datasets import Split, evenly_spaced
from sstune.schema import Draws, Gradient, Target
from sstune.tasks.classification import target_classes

Converted = Callable[[str], Network]


class TestRobust:
    @pytest.mark.parametrize("batch_size", [1, 16, 512])
    def test_samples_wrong_without_an_attack_are_never_attacked(
        self, batch_size: int, network: Network, test_split: Split
    ) -> None:
        clean = torch.arange(len(test_split)) % 3 == 0
        clean &= judged(network, test_split)
        samples, spy = torch.arange(len(test_split)) + 1000, Spy()
        outcome = attacked(network, spy, test_split, 0.1, samples=samples, clean=clean, batch_size=batch_size)
        assert torch.equal(outcome.robust, clean)
        assert torch.equal(outcome.success, ~clean)
        assert spy.samples[""] == samples[clean].tolist()
        assert torch.equal(torch.cat(spy.images), test_split.images[clean].float() / 255)
        assert spy.modes == {False}

    def test_nothing_right_is_nothing_to_attack(self, network: Network, test_split: Split) -> None:
        clean, spy = torch.zeros(len(test_split), dtype=torch.bool), Spy(["one", "two"])
        victim, source = victim_of(network, test_split, clean=clean), GradientSource(Gradient.exact, network)
        for eps in (0.0, 0.1):
            outcome = run_attack(victim, spy, source, eps, 64)
            assert not outcome.robust.any()
            assert (outcome.stage, outcome.done) == (2, 0)
        assert spy.samples == {}
        check_zero_eps(victim, spy, source, 64)

    def test_a_single_sample(self, network: Network, test_split: Split) -> None:
        one = test_split.take(judged(network, test_split).nonzero()[0])
        for attack in ASCENTS:
            assert right(network, make(attack), one, 0.0).tolist() == [True]
            assert right(network, make(attack), one, 0.5).tolist() == [False]

    @pytest.mark.parametrize("attack", ASCENTS)
    def test_each_part_is_tried_on_what_is_unbroken_and_every_success_counts(
        self, attack: str, network: Network, test_split: Split
    ) -> None:
        class Halves(Spy):
            """The first stage breaks even samples, the second those that 3 divides."""

            def move(self, stage: str, batch: Labelled) -> Tensor:
                moved = batch.samples % {"two": 2, "three": 3}[stage] == 0
                return torch.where(moved[:, None, None, None], 1 - batch.images, batch.images)

        class Negative(nn.Module):
            """Errs on what ``Halves`` has moved: its label is the mean grey value's side of 1/2."""

            def forward(self, images: Tensor) -> Tensor:
                light = images.mean((1, 2, 3)) - 0.5
                return torch.stack([-light, light], 1)

        split, spy = replace_labels(test_split, Negative()), Halves(["two", "three"])
        outcome = attacked(Negative(), spy, split, 1.0, clean=torch.ones(120).bool(), batch_size=16)
        everyone = list(range(120))
        assert spy.samples == {"two": everyone, "three": everyone[1::2]}
        expected = torch.tensor([i % 2 != 0 and i % 3 != 0 for i in everyone])
        assert torch.equal(outcome.robust, expected)
        assert torch.equal(outcome.success, ~expected)
        assert torch.equal(outcome.steps_to_success, torch.where(expected, -1, 5).int())

    def test_a_success_is_believed_only_when_seen(self, network: Network, test_split: Split) -> None:
        """The spy says that 5 steps broke every sample; none is broken."""
        outcome = attacked(network, Spy(), test_split, 0.1)
        assert torch.equal(outcome.robust, judged(network, test_split))
        assert (outcome.steps_to_success == -1).all()

    def test_inputs_are_kept(self, network: Network, test_split: Split) -> None:
        clean = judged(network, test_split)
        before = clean.clone()
        kept = right(network, make("fgsm"), test_split, 0.4, clean=clean)
        assert torch.equal(clean, before)
        assert (kept <= clean).all()
        assert kept.dtype == torch.bool

    def test_effort_is_the_first_step_after_which_the_sample_is_wrong(
        self, network: Network, test_split: Split
    ) -> None:
        """A PGD of so many steps, from the same start, breaks it, and one of fewer does not."""
        eps = 24 / 255
        outcome = attacked(network, make("pgd", steps=6, step_size="0.02"), test_split, eps)
        for steps in range(1, 7):
            fewer = attacked(network, make("pgd", steps=steps, step_size="0.02"), test_split, eps)
            within = (outcome.steps_to_success >= 0) & (outcome.steps_to_success <= steps)
            assert torch.equal(within, fewer.success & judged(network, test_split))

    def test_targeted_the_target_must_be_reached_and_any_error_counts_against_the_network(
        self, network: Network, test_split: Split
    ) -> None:
        clean, left = judged(network, test_split), {}
        for target in Target:
            outcome = attacked(network, make("pgd", targeted=target), test_split, 44 / 255)
            reached = outcome.success & clean
            assert reached.any()
            assert not (outcome.robust & reached).any()
            assert torch.equal(outcome.steps_to_success >= 0, reached)
            left[target] = int(outcome.robust.sum())
            if target is not Target.runner_up:  # the class that most err into
                assert int(reached.sum()) < int((~outcome.robust & clean).sum())
        assert left[Target.least_likely] > left[Target.random] > left[Target.runner_up]

    @pytest.mark.parametrize("batch_size", [1, 50, 512])
    def test_images_are_kept(self, batch_size: int, network: Network, test_split: Split) -> None:
        """The originals of samples that are wrong without an attack, otherwise what the attack made."""
        victim, source, eps = (
            victim_of(network, test_split),
            GradientSource(Gradient.exact, network),
            24 / 255,
        )
        attack: Any = make("pgd", steps=3, early_exit=False)
        outcome = run_attack(victim, attack, source, eps, batch_size, victim.begin(70))
        batch = labelled(test_split.images / 255, test_split.targets, None, range(120))
        made = (
            (255 * attack("restart 0", source.model(), batch, objective_of(batch), eps).images).round().byte()
        )
        expected = torch.where(victim.clean[:, None, None, None], made, test_split.images)[
            evenly_spaced(70, 120)
        ]
        assert torch.equal(outcome.images, expected)
        assert not torch.equal(expected, victim.images(70))


def replace_labels(split: Split, network: nn.Module) -> Split:
    """Labelled as ``network`` judges it."""
    return Split(split.images, network(split.images / 255).argmax(1))


class TestSurrogates:
    @pytest.fixture
    def other(self, network: Network) -> Network:
        """Nearly the same network: attacks on one transfer to the other."""
        other = copy.deepcopy(network)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in other.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter += parameter.std() * noise
        return other

    @pytest.mark.parametrize("attack", ASCENTS)
    def test_are_climbed_and_the_victim_judged(
        self, attack: str, other: Network, network: Network, test_split: Split
    ) -> None:
        victim, source, eps = (
            victim_of(network, test_split),
            GradientSource(Gradient.surrogate, other, "other"),
            24 / 255,
        )
        method = make(attack) if attack == "fgsm" else make(attack, early_exit=False)
        outcome = run_attack(victim, method, source, eps, 64)
        batch = labelled(test_split.images / 255, test_split.targets, None, range(120))
        with gradient_mode(other, Gradient.exact):
            images = method(method.stages[0], AttackedModel(other), batch, objective_of(batch), eps).images
        expected = victim.clean & (network(images).argmax(1) == test_split.targets)
        assert torch.equal(outcome.robust, expected)
        assert not torch.equal(right(network, method, test_split, eps), expected)
        assert int(expected.sum()) < int(victim.clean.sum())
        assert (outcome.steps_to_success == -1).all()  # that of the surrogate, if of anything

    def test_nothing_of_either_network_changes(self, converted: Converted, test_split: Split) -> None:
        """Neither by the gradients of the one nor by the other's judgements, which could draw feedback."""
        victim, surrogate = converted("brsf-forward"), converted("brsf-forward")
        before = [copy.deepcopy(network.state_dict()) for network in (victim, surrogate)]
        source = GradientSource(Gradient.surrogate, surrogate, "surrogate", Draws.forward)
        clean = torch.ones(len(test_split), dtype=torch.bool)
        run_attack(victim_of(victim, test_split, clean=clean), make("fgsm"), source, 0.1, 64)
        for network, state in zip((victim, surrogate), before, strict=True):
            after: dict[str, Any] = network.state_dict()
            for key, value in state.items():
                assert torch.equal(after[key], value) if isinstance(value, Tensor) else after[key] == value


class TestWanted:
    @pytest.mark.parametrize("n_classes", [2, 3, 10])
    def test_targets_by_brute_force(self, n_classes: int) -> None:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(4, n_classes))
        images, labels = torch.rand(30, 1, 2, 2), torch.arange(30) % n_classes
        batch = labelled(images, labels, None, range(100, 130))
        found = {target: target_classes(network(images), batch, target, 0) for target in Target}
        for i, (row, label) in enumerate(zip(network(images).tolist(), labels.tolist(), strict=True)):
            others = [k for k in range(n_classes) if k != label]
            assert found[Target.runner_up][i] == max(others, key=lambda k: row[k])
            assert found[Target.least_likely][i] == min(others, key=lambda k: row[k])
            assert found[Target.random][i] in others

    def test_random_ones_depend_on_seed_and_sample_alone_and_are_spread_evenly(self) -> None:
        network = nn.Sequential(nn.Flatten(), nn.Linear(1, 5))
        images, labels = torch.rand(3000, 1, 1, 1), torch.arange(3000) % 5

        def targets(seed: int, index: Tensor) -> Tensor:
            batch = labelled(images[index], labels[index], None, index)
            return target_classes(network(images[index]), batch, Target.random, seed)

        all_of_them = targets(0, torch.arange(3000))
        order = torch.randperm(3000, generator=torch.Generator().manual_seed(0))[:100]
        assert torch.equal(targets(0, order), all_of_them[order])
        assert not torch.equal(targets(1, order), all_of_them[order])
        pairs = torch.bincount(labels * 5 + all_of_them, minlength=25).reshape(5, 5)
        assert pairs.diagonal().sum() == 0
        assert pairs[~torch.eye(5, dtype=torch.bool)].min() > 100  # 150 expected


class TestVictim:
    def test_takes_and_shows_some_of_its_samples(self, network: Network, test_split: Split) -> None:
        samples = torch.arange(120) + 7
        victim = victim_of(network, test_split, samples)
        some = victim.take(torch.tensor([5, 3]))
        assert some.samples.tolist() == [12, 10]
        assert torch.equal(some.split.targets, test_split.targets[[5, 3]])
        assert torch.equal(some.clean, victim.clean[[5, 3]])
        assert (len(victim.some(9).split), len(victim.some(1000).split)) == (9, 120)
        for n in (0, 1, 50, 1000):
            shown = victim.some(n).samples - 7
            assert torch.equal(victim.images(n), test_split.images[shown]) or n == 0
        assert len(victim.images(0)) == 0

    def test_some_are_of_every_class_where_samples_are_sorted_by_class(
        self, network: Network, test_split: Split
    ) -> None:
        by_class = victim_of(network, test_split.take(test_split.targets.sort().indices))
        assert by_class.some(40).split.targets.unique().tolist() == list(range(10))

    def test_on_a_cpu_a_batch_is_128_images(self, network: Network, test_split: Split) -> None:
        victim = victim_of(network, test_split)
        assert victim.device == CPU
        for n in (1, 120):
            assert largest_batch(victim.some(n), GradientSource(Gradient.exact, network)) == 128
