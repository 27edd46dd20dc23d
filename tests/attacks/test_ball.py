"""The ball: directions in it, projections onto it, random starts, and that no attack leaves it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from victims import batch_of, labelled, make, objective_of

from sstune.attacks import AttackedModel
from sstune.attacks.ascent import project, random_in_ball
from sstune.attacks.steps import direction, length
from sstune.backbones import Network
from sstune.datasets import Split
from sstune.schema import Norm

ULP = 1e-7  # of pixels near 1
NORMS = [Norm.Linf, Norm.L2]


class TestDirection:
    @settings(deadline=None)
    @given(
        seed=st.integers(0, 1000),
        shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
        exponent=st.integers(-37, 18),
    )
    def test_has_length_one_whatever_the_gradients_size(
        self, seed: int, shape: tuple[int, int, int], exponent: int
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        unit = torch.randn(2, *shape, generator=generator)
        found = direction(unit * 10.0**exponent, Norm.L2)
        torch.testing.assert_close(length(found), torch.ones(2, 1, 1, 1), rtol=1e-5, atol=0)
        expected = F.normalize(unit.double().flatten(1), eps=1e-300).reshape(unit.shape).float()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        assert torch.equal(direction(unit * 10.0**exponent, Norm.Linf), unit.sign())

    @pytest.mark.parametrize("norm", NORMS)
    def test_is_zero_where_the_gradient_is(self, norm: Norm) -> None:
        gradient = torch.zeros(2, 1, 2, 2)
        gradient[1, 0, 0, 0] = -2.0
        expected = torch.zeros(2, 1, 2, 2)
        expected[1, 0, 0, 0] = -1.0
        assert torch.equal(direction(gradient, norm), expected)


class TestProject:
    @given(value=st.floats(0, 1, width=32), moved=st.floats(-3, 3, width=32), eps=st.floats(0, 1))
    def test_in_linf_is_the_nearest_point(self, value: float, moved: float, eps: float) -> None:
        low, high = max(0.0, value - eps), min(1.0, value + eps)
        found = project(torch.tensor(moved), torch.tensor(value), eps)
        assert float(found) == pytest.approx(min(max(moved, low), high), abs=1e-6)

    @settings(deadline=None)
    @given(
        seed=st.integers(0, 1000),
        eps=st.one_of(st.just(0.0), st.floats(1e-6, 0.4)),
        far=st.sampled_from([1e-9, 0.01, 0.3, 0.5, 5.0]),
        shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    )
    def test_in_l2_is_the_nearest_point_of_the_ball(
        self, seed: int, eps: float, far: float, shape: tuple[int, int, int]
    ) -> None:
        """Around grey images, where no point of the ball leaves [0,1]. No other point tried is nearer."""
        generator = torch.Generator().manual_seed(seed)
        images = torch.full((2, *shape), 0.5)
        moved = images + far * torch.randn(images.shape, generator=generator)
        found = project(moved, images, eps, Norm.L2)
        distance = length(moved - found)
        for _ in range(20):
            other = torch.randn(images.shape, generator=generator)
            other = images + eps * torch.rand((), generator=generator) * other / length(other)
            assert (distance <= length(moved - other) + 1e-6).all()
            blend = found + 0.1 * (other - found)  # also in the ball, and near
            assert (distance <= length(moved - blend) + 1e-6).all()
        inside = length(moved - images) <= eps
        assert (((found - moved).abs().amax((1, 2, 3), keepdim=True) <= ULP) | ~inside).all()

    @settings(deadline=None)
    @given(
        seed=st.integers(0, 1000),
        norm=st.sampled_from(NORMS),
        eps=st.one_of(st.sampled_from([0.0, 1e-12, 1 / 255]), st.floats(0, 3)),
        far=st.sampled_from([0.0, 1e-30, 0.1, 10.0, 1e6]),
    )
    def test_never_leaves_the_ball_or_0_1(self, seed: int, norm: Norm, eps: float, far: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        images = (torch.rand(3, 2, 3, 3, generator=generator) * 1.5 - 0.25).clamp(0, 1)
        moved = images + far * torch.randn(images.shape, generator=generator)
        found = project(moved, images, eps, norm)
        assert float(found.min()) >= 0
        assert float(found.max()) <= 1
        delta = found - images
        farthest = float(delta.abs().max() if norm is Norm.Linf else length(delta).max())
        assert farthest <= eps * (1 + 1e-6) + 1e-6
        assert torch.equal(project(images, images, eps, norm), images)


class TestStart:
    @pytest.mark.parametrize("norm", NORMS)
    def test_follows_from_seed_restart_and_sample_alone(self, norm: Norm, test_split: Split) -> None:
        batch = batch_of(test_split)
        attack: Any = make("pgd", norm=norm)
        starts = attack.start(batch, 0.1, 0)
        order = torch.randperm(len(starts), generator=torch.Generator().manual_seed(0))
        assert torch.equal(attack.start(batch.take(order), 0.1, 0), starts[order])
        assert torch.equal(attack.start(batch.take(torch.tensor([40])), 0.1, 0), starts[40:41])
        other: Any = make("pgd", seed=1, norm=norm)
        for different in (attack.start(batch, 0.1, 1), other.start(batch, 0.1, 0)):
            assert (different != starts).flatten(1).any(1).all()

    def test_draws_nothing_from_the_global_generator(self, network: Network, test_split: Split) -> None:
        before = torch.get_rng_state()
        make("pgd", steps=1)(
            "restart 0", AttackedModel(network), batch_of(test_split), objective_of(batch_of(test_split)), 0.1
        )
        assert torch.equal(torch.get_rng_state(), before)

    def test_in_linf_is_uniform_in_the_ball_and_proportional_to_eps(self) -> None:
        batch = labelled(torch.full((200, 1, 16, 16), 0.5), torch.zeros(200).long(), None, range(200))
        attack: Any = make("pgd")
        unit, half = (attack.start(batch, eps, 0) - batch.images for eps in (0.5, 0.25))
        torch.testing.assert_close(half, unit / 2, rtol=0, atol=ULP)
        assert abs(float(unit.mean())) < 0.01
        assert float(unit.square().mean()) == pytest.approx(0.25 / 3, rel=0.02)
        assert 0.499 < float(unit.abs().max()) <= 0.5

    def test_in_l2_has_any_direction_and_a_length_uniform_up_to_eps(self) -> None:
        noise = random_in_ball(torch.Size((2000, 1, 4, 4)), Norm.L2, 0, ("k",), range(2000))
        radius = length(noise).flatten()
        assert float(radius.max()) <= 1 + 1e-6
        assert float(radius.mean()) == pytest.approx(1 / 2, abs=0.02)
        assert float(radius.square().mean()) == pytest.approx(1 / 3, abs=0.02)
        units = (noise / length(noise)).flatten(1)
        assert float(units.mean(0).abs().max()) < 4 / math.sqrt(2000 * 16)
        torch.testing.assert_close(units.square().mean(0), torch.full((16,), 1 / 16), rtol=0.15, atol=0)

    def test_is_the_same_in_inference_mode_and_on_any_number_of_threads(self) -> None:
        shape = torch.Size((7, 1, 4, 4))
        one = random_in_ball(shape, Norm.Linf, 0, ("k",), range(7))
        before = torch.get_num_threads()
        torch.set_num_threads(3)
        try:
            with torch.inference_mode():
                assert torch.equal(random_in_ball(shape, Norm.Linf, 0, ("k",), range(7)), one)
        finally:
            torch.set_num_threads(before)

    def test_is_the_image_itself_when_told(self, test_split: Split) -> None:
        attack: Any = make("pgd", random_start=False)
        batch = batch_of(test_split)
        assert torch.equal(attack.start(batch, 0.1, 0), batch.images)


class Scrambler(nn.Module):
    """A random linear classifier for images of any shape."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(*shape, 3, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.flatten(0, -2)


class TestBall:
    @settings(deadline=None, max_examples=60)
    @given(
        eps=st.one_of(st.sampled_from([0.0, 1 / 255, 8 / 255, 1.0]), st.floats(0, 1)),
        shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
        n=st.integers(1, 4),
        seed=st.integers(0, 100),
        norm=st.sampled_from(NORMS),
        targeted=st.booleans(),
        step_size=st.sampled_from(["eps/4", "2*eps", "0.1"]),
    )
    def test_adversarial_images_stay_in_it_and_in_0_1(
        self,
        eps: float,
        shape: tuple[int, int, int],
        n: int,
        seed: int,
        norm: Norm,
        targeted: bool,
        step_size: str,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        images = (torch.rand(n, *shape, generator=generator) * 1.5 - 0.25).clamp(0, 1)  # 0 and 1 are common
        labels = torch.randint(3, (n,), generator=generator)
        batch = labelled(images, labels, (labels + 1) % 3 if targeted else None, range(n))
        for attack in (
            make("fgsm", norm=norm),
            make("pgd", norm=norm, steps=3, restarts=2, step_size=step_size),
            make("mifgsm", norm=norm, steps=3, step_size=step_size),
        ):
            for stage in attack.stages:
                adversarial = attack(
                    stage, AttackedModel(Scrambler(shape)), batch, objective_of(batch), eps
                ).images
                assert adversarial.shape == images.shape
                assert not adversarial.requires_grad
                assert float(adversarial.min()) >= 0
                assert float(adversarial.max()) <= 1
                delta = adversarial - images
                farthest = float(delta.abs().max() if norm is Norm.Linf else length(delta).max())
                assert farthest <= eps + 1e-6
                if eps == 0:
                    assert torch.equal(adversarial, images)

    def test_inputs_are_not_changed(self, network: Network, test_split: Split) -> None:
        batch = batch_of(test_split)
        kept = batch.images.clone(), batch.targets.clone()
        for attack in (make("fgsm"), make("pgd", steps=2, random_start=False), make("mifgsm", steps=2)):
            attempt = attack(attack.stages[0], AttackedModel(network), batch, objective_of(batch), 0.1)
            assert not torch.equal(attempt.images, batch.images)
            assert torch.equal(batch.images, kept[0])
            assert torch.equal(batch.targets, kept[1])
