"""Random noise: its distribution, what it breaks by chance, and that the best attempt is kept."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from victims import Labelled, labelled, objective_of, victim_of

from sstune.attacks import ATTACKS, AttackedModel, AttackResult, GradientSource, check_zero_eps, run_attack
from sstune.backbones import Network
from sstune.datasets import Split
from sstune.schema import Gradient, NoiseConfig

ULP = 1e-7


def attack(network: nn.Module, batch: Labelled, eps: float, attempts: int, seed: int = 0) -> AttackResult:
    return ATTACKS["noise"](NoiseConfig("noise", ["0"], attempts=attempts), seed)(
        "", AttackedModel(network), batch, objective_of(batch), eps
    )


class NeverErrs(nn.Module):
    """Keeps what it is shown, and calls everything class 0."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.shown.append(images)
        return torch.tensor([1.0, 0.0]).expand(len(images), 2)


def perturbations(batch: Labelled, eps: float, attempts: int, seed: int = 0) -> Tensor:
    """What is tried on each sample until the end, (attempts, N, C, H, W)."""
    network = NeverErrs()
    all_zero = labelled(batch.images, torch.zeros_like(batch.targets), None, batch.samples)
    attack(network, all_zero, eps, attempts, seed)
    return torch.stack(network.shown) - batch.images


def grey(n: int, shape: tuple[int, ...] = (3, 6, 5), value: float = 0.5) -> Labelled:
    return labelled(torch.full((n, *shape), value), torch.zeros(n, dtype=torch.long), None, range(n))


class TestDistribution:
    def test_is_uniform_in_the_ball_at_every_other_attempt_and_a_corner_at_the_others(self) -> None:
        eps = 0.2
        delta = perturbations(grey(100), eps, 10)
        uniform, corners = delta[::2], delta[1::2]
        torch.testing.assert_close(corners.abs(), torch.full_like(corners, eps), rtol=0, atol=ULP)
        assert abs(float(corners.sign().mean())) < 0.01
        assert abs(float(uniform.mean())) < 0.01 * eps
        for power in (2, 4):  # E|u|^p = eps^p / (p + 1)
            found = float((uniform / eps).abs().pow(power).mean())
            assert found == pytest.approx(1 / (power + 1), rel=0.02)
        assert 0.999 * eps < float(uniform.abs().max()) <= eps + ULP

    def test_no_two_samples_or_attempts_share_it(self) -> None:
        delta = perturbations(grey(20), 0.2, 6).flatten(2).flatten(0, 1)
        correlation = torch.corrcoef(delta) - torch.eye(len(delta))
        assert float(correlation.abs().max()) < 0.5  # 0.42 is 4 standard deviations of 90 values

    def test_a_pixel_breaks_as_often_as_chance_says(self) -> None:
        """One pixel, wrong above 0.5 + m: a uniform attempt does it with (1 - m/eps)/2, a corner with 1/2."""

        class Threshold(nn.Module):
            def forward(self, images: Tensor) -> Tensor:
                above = images.flatten(1) - 0.55
                return torch.cat([-above, above], 1)

        n, eps = 4000, 0.2
        effort = attack(Threshold(), grey(n, (1, 1, 1)), eps, 4).steps_to_success
        left = n
        for attempt, chance in enumerate([0.375, 0.5, 0.375, 0.5], start=1):
            broken = int((effort == attempt).sum())
            assert abs(broken - chance * left) < 4 * math.sqrt(left * chance * (1 - chance))
            left -= broken
        assert int((effort == -1).sum()) == left

    def test_grows_with_eps_and_is_clipped(self) -> None:
        half, whole = perturbations(grey(5), 0.1, 4), perturbations(grey(5), 0.2, 4)
        torch.testing.assert_close(whole, 2 * half, rtol=0, atol=2 * ULP)
        black, white = (perturbations(grey(5, value=value), 0.2, 4) for value in (0.0, 1.0))
        torch.testing.assert_close(black, whole.clamp_min(0), rtol=0, atol=2 * ULP)
        torch.testing.assert_close(white, whole.clamp_max(0), rtol=0, atol=2 * ULP)

    def test_follows_from_seed_attempt_and_sample_alone(self) -> None:
        batch = grey(6)
        before = torch.get_rng_state()
        delta = perturbations(batch, 0.2, 4)
        assert torch.equal(torch.get_rng_state(), before)
        index = torch.tensor([4, 1])
        assert torch.equal(perturbations(batch.take(index), 0.2, 4), delta[:, index])
        assert (perturbations(batch, 0.2, 4, seed=1) != delta).flatten(2).any(2).all()


@pytest.fixture
def digits_batch(network: Network, test_split: Split) -> Labelled:
    """Those that the network knows."""
    images, labels = test_split.images / 255, test_split.targets
    right = (network(images).argmax(1) == labels).nonzero().flatten()
    return labelled(images[right], labels[right], None, right.tolist())


class TestBest:
    eps = 40 / 255

    def test_is_the_first_attempt_that_breaks_a_sample(
        self, network: Network, digits_batch: Labelled
    ) -> None:
        tried = digits_batch.images + perturbations(digits_batch, self.eps, 30)
        with torch.no_grad():
            wrong = torch.stack([digits_batch.success(network(images)) for images in tried])
        first = torch.where(wrong.any(0), 1 + wrong.int().argmax(0), -1)
        attempt = attack(network, digits_batch, self.eps, 30)
        assert torch.equal(attempt.steps_to_success, first)
        assert len(first.unique()) > 4
        chosen = torch.where(first < 0, 30, first) - 1
        expected = tried[chosen, torch.arange(len(first))]
        torch.testing.assert_close(attempt.images, expected, rtol=0, atol=ULP)

    def test_asks_no_more_once_a_sample_is_broken(self, network: Network, digits_batch: Labelled) -> None:
        seen, model = 0, AttackedModel(network)

        def observe(images: Tensor, outputs: Tensor) -> None:
            nonlocal seen
            seen += len(images)

        model.observe = observe
        effort = ATTACKS["noise"](NoiseConfig("noise", ["0"], attempts=20), 0)(
            "", model, digits_batch, objective_of(digits_batch), self.eps
        ).steps_to_success
        assert seen == int(torch.where(effort < 0, 20, effort).sum())
        assert model.n_gradients == 0

    def test_more_attempts_change_nothing_that_is_broken(
        self, network: Network, digits_batch: Labelled
    ) -> None:
        few, many = (attack(network, digits_batch, self.eps, n) for n in (5, 40))
        broken = few.steps_to_success > 0
        assert torch.equal(few.steps_to_success[broken], many.steps_to_success[broken])
        assert torch.equal(few.images[broken], many.images[broken])
        assert int((many.steps_to_success > 5).sum()) > 0

    def test_through_the_engine_in_any_batches(self, network: Network, test_split: Split) -> None:
        victim = victim_of(network, test_split)
        noise = ATTACKS["noise"](NoiseConfig("noise", ["0"], attempts=10), 0)
        source = GradientSource(Gradient.none, network)
        check_zero_eps(victim, noise, source, 64)
        outcomes = [run_attack(victim, noise, source, self.eps, size) for size in (128, 7)]
        assert torch.equal(outcomes[0].steps_to_success, outcomes[1].steps_to_success)
        assert torch.equal(outcomes[0].robust, outcomes[1].robust)
        assert (outcomes[0].steps_to_success[outcomes[0].success & victim.clean] > 0).all()
        assert 0 < int(outcomes[0].robust.sum()) < int(victim.clean.sum())


class Bright(nn.Module):
    """Class 1 where an image is brighter than mid-grey on the whole."""

    def forward(self, images: Tensor) -> Tensor:
        excess = images.double().flatten(1).mean(1) - 0.5
        return torch.stack([-excess, excess], 1)


@settings(deadline=None, max_examples=50)
@given(
    eps=st.one_of(st.sampled_from([0.0, 1 / 255, 8 / 255, 1.0]), st.floats(0, 1)),
    shape=st.tuples(st.sampled_from([1, 3]), st.integers(1, 5), st.integers(1, 5)),
    n=st.integers(1, 5),
    attempts=st.integers(1, 5),
    seed=st.integers(0, 100),
)
def test_stays_in_the_ball_and_keeps_its_inputs(
    eps: float, shape: tuple[int, int, int], n: int, attempts: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = (torch.rand(n, *shape, generator=generator) * 1.5 - 0.25).clamp(0, 1)  # 0 and 1 are common
    labels = Bright()(images).argmax(1)
    kept = images.clone()
    attempt = attack(Bright(), labelled(images, labels, None, range(n)), eps, attempts, seed)
    assert torch.equal(images, kept)
    assert attempt.images.shape == images.shape
    assert float(attempt.images.min()) >= 0
    assert float(attempt.images.max()) <= 1
    assert float((attempt.images - images).abs().max()) <= eps + 1e-6
    assert torch.equal(Bright()(attempt.images).argmax(1) != labels, attempt.steps_to_success > 0)
    if eps == 0:
        assert torch.equal(attempt.images, images)
