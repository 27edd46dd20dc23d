"""What must hold of every adversarial image, and images rounded to 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from victims import attacked, make, victim_of

from sstune.attacks import GradientSource, InvalidAttack, check_images, run_attack
from sstune.attacks.ascent import project
from sstune.attacks.steps import length
from sstune.attacks.validity import distance, to_8bit
from sstune.backbones import Network
from sstune.datasets import Split
from sstune.schema import Gradient, Norm

IMAGES = torch.tensor([0.0, 0.2, 0.5, 1.0]).reshape(1, 1, 2, 2)


def pixels(values: list[float]) -> Tensor:
    return torch.tensor(values).reshape(1, 1, 2, 2)


class TestCheckImages:
    @pytest.mark.parametrize(
        ("norm", "delta", "eps"),
        [
            (Norm.Linf, [0.0, 0.0, 0.0, 0.0], 0.0),
            (Norm.Linf, [0.1, -0.1, 0.1, -0.1], 0.1),
            (Norm.Linf, [5e-7, 0.0, 0.0, 0.0], 0.0),  # rounding
            (Norm.Linf, [1.0, 0.8, 0.5, -1.0], 1.0),
            (Norm.L2, [0.0, 0.0, 0.0, 0.0], 0.0),
            (Norm.L2, [0.1, -0.1, 0.1, -0.1], 0.2),
            (Norm.L2, [5e-7, 0.0, 5e-7, 0.0], 0.0),
            (Norm.L2, [0.6, 0.0, 0.0, -0.8], 1.0),
        ],
    )
    def test_passes_valid_ones(self, norm: Norm, delta: list[float], eps: float) -> None:
        assert check_images(IMAGES + pixels(delta), IMAGES, eps, norm) is None

    @pytest.mark.parametrize(
        ("norm", "delta", "eps", "message"),
        [
            (Norm.Linf, [0.0, 0.0, 0.11, 0.0], 0.1, r"is 0\.1\d* away, eps is 0\.1"),
            (Norm.Linf, [0.0, 0.0, -0.11, 0.0], 0.1, r"is 0\.1\d* away, eps is 0\.1"),
            (Norm.Linf, [0.0, 2e-6, 0.0, 0.0], 0.0, "eps is 0"),
            (Norm.L2, [0.0, 0.0, 0.11, 0.0], 0.1, r"is 0\.1\d* away, eps is 0\.1"),
            (Norm.L2, [0.1, -0.1, 0.1, -0.1], 0.19, r"is 0\.2\d* away, eps is 0\.19"),
            (Norm.L2, [2e-6, 0.0, 0.0, 0.0], 0.0, "eps is 0"),
            *(
                (norm, *case)
                for norm in (Norm.Linf, Norm.L2)
                for case in [
                    ([0.0, float("nan"), 0.0, 0.0], 0.1, "not finite"),
                    ([0.0, float("inf"), 0.0, 0.0], 1.0, "not finite"),
                    ([0.0, 0.0, float("-inf"), 0.0], 1.0, "not finite"),
                    ([-0.01, 0.0, 0.0, 0.0], 0.1, r"leaves \[0, 1\]: -0\.0"),
                    ([0.0, 0.0, 0.0, 0.01], 0.1, r"leaves \[0, 1\]: 0\.0 to 1\.0"),
                ]
            ),
        ],
    )
    def test_catches_each_violation(self, norm: Norm, delta: list[float], eps: float, message: str) -> None:
        with pytest.raises(InvalidAttack, match=f"^D0: .*{message}"):
            check_images(IMAGES + pixels(delta), IMAGES, eps, norm)

    @pytest.mark.parametrize("norm", [Norm.Linf, Norm.L2])
    def test_one_image_among_many_suffices(self, norm: Norm) -> None:
        images = torch.full((5, 2, 3, 3), 0.5)
        for sample in range(5):
            adversarial = images.clone()
            adversarial[sample, 1, 2, 0] += 0.2
            check_images(adversarial, images, 0.21, norm)
            with pytest.raises(InvalidAttack, match=r"eps is 0\.19"):
                check_images(adversarial, images, 0.19, norm)

    def test_catches_another_shape(self) -> None:
        with pytest.raises(InvalidAttack, match=r"of shape \(1, 1, 2, 2\) became \(1, 1, 2\)"):
            check_images(IMAGES[..., 0], IMAGES, 1.0)


def originals(generator: torch.Generator) -> Tensor:
    """Three 8-bit images, black and white frequent."""
    grey = (torch.rand(3, 2, 4, 4, generator=generator) * 355 - 50).clamp(0, 255)
    return grey.round() / 255


class TestTo8Bit:
    @settings(deadline=None, max_examples=200)
    @given(
        seed=st.integers(0, 10_000),
        norm=st.sampled_from([Norm.Linf, Norm.L2]),
        eps=st.one_of(
            st.integers(0, 64).map(lambda n: n / 255),
            st.sampled_from([0.031372, 0.03137, 0.0588]),  # just below so many grey levels
            st.floats(0, 1),
        ),
        far=st.sampled_from([0.0, 0.3, 1.0, 10.0]),
    )
    def test_of_an_image_in_the_ball_is_one(self, seed: int, norm: Norm, eps: float, far: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        images = originals(generator)
        noise = torch.randn(images.shape, generator=generator)
        adversarial = project(images + far * eps * noise, images, eps, norm)
        found = to_8bit(adversarial, images, eps, norm)
        assert torch.equal(found, (found * 255).round() / 255)
        check_images(found, images, eps, norm)
        assert torch.equal(to_8bit(found, images, eps, norm), found)
        delta, given_ = 255 * (found - images).double(), 255 * (adversarial - images).double()
        if norm is Norm.L2:
            assert (delta.abs() <= given_.abs() + 2e-4).all()  # no pixel moves further away
            assert (delta * given_ >= -1e-9).all()  # or to the other side
            assert (given_.abs() - delta.abs() < 1).all()
            return
        for place in torch.cartesian_prod(*(torch.arange(size) for size in images.shape)).tolist():
            value, original = float(adversarial[tuple(place)]), float(images[tuple(place)])
            allowed = [k for k in range(256) if abs(k - 255 * original) <= 255 * eps + 1e-4]
            nearest = min(abs(k - 255 * value) for k in allowed)
            assert abs(255 * float(found[tuple(place)]) - 255 * value) == pytest.approx(nearest, abs=1e-3)

    @pytest.mark.parametrize("levels", [1, 2, 7])
    def test_in_l2_many_pixels_just_below_a_level_do_not_leave_the_ball_together(self, levels: int) -> None:
        """Each may be taken for the next whole level, a rounding error away; 3,072 of them add up."""
        images = torch.full((1, 3, 32, 32), 100 / 255)
        for below in (0.0, 1e-5, 5e-5, 9e-5, 2e-4):
            adversarial = images + (levels - below) / 255
            eps = float(length(adversarial - images))
            found = to_8bit(adversarial, images, eps, Norm.L2)
            check_images(found, images, eps, Norm.L2)
            moved = (255 * (found - images)).round().unique()
            assert set(moved.tolist()) <= {levels, levels - 1.0}

    @pytest.mark.parametrize("levels", [0, 1, 8])
    def test_of_an_image_that_is_one_already_is_the_same(self, levels: int) -> None:
        generator = torch.Generator().manual_seed(levels)
        images = originals(generator)
        step = torch.randint(-levels, levels + 1, images.shape, generator=generator)
        adversarial = ((255 * images).round() + step).clamp(0, 255) / 255
        for norm in (Norm.Linf, Norm.L2):
            eps = float(distance(adversarial, images, norm))
            assert torch.equal(to_8bit(adversarial, images, eps, norm), adversarial)


class TestRoundedAttacks:
    @pytest.mark.parametrize(("norm", "eps"), [(Norm.Linf, 10.5 / 255), (Norm.L2, 0.7)])
    @pytest.mark.parametrize("eight_bit", [True, False])
    @pytest.mark.parametrize("name", ["fgsm", "pgd", "mifgsm"])
    def test_images_kept_are_in_the_ball(
        self, name: str, eight_bit: bool, norm: Norm, eps: float, network: Network, test_split: Split
    ) -> None:
        victim, source = victim_of(network, test_split), GradientSource(Gradient.exact, network)
        attack = make(name, norm=norm, eight_bit=eight_bit)
        outcome = run_attack(victim, attack, source, eps, 50, victim.begin(120))
        kept, before = outcome.images.float() / 255, test_split.images.float() / 255
        check_images(kept, before, eps, norm)
        moved = (kept != before).flatten(1).any(1)
        assert torch.equal(moved, victim.clean)  # all that were attacked, and no other
        if eight_bit:  # what was judged is what was kept
            with torch.no_grad():
                assert torch.equal(network(kept).argmax(1) == test_split.targets, outcome.robust)

    def test_success_is_judged_on_rounded_images(self, network: Network, test_split: Split) -> None:
        """At 1/255 no step of a quarter of it would outlive rounding; at half a level nothing does."""
        clean = victim_of(network, test_split).clean
        for eps in (0.4 / 255, 0.99 / 255):
            assert torch.equal(attacked(network, make("pgd", eight_bit=True), test_split, eps).robust, clean)
        found: dict[bool, Any] = {
            eight_bit: attacked(network, make("pgd", eight_bit=eight_bit), test_split, 24 / 255).robust
            for eight_bit in (False, True)
        }
        counts = {eight_bit: int(right.sum()) for eight_bit, right in found.items()}
        assert counts[True] == pytest.approx(counts[False], abs=3)  # and little at larger ones


def test_the_grid_of_grey_levels_is_what_images_are_read_with(test_split: Split) -> None:
    """uint8 -> float32 / 255 -> uint8 loses nothing, so that an original counts as unmoved."""
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    images = levels.float() / 255
    for norm in (Norm.Linf, Norm.L2):
        assert torch.equal(to_8bit(images, images, 0.0, norm), images)
    assert np.array_equal((255 * images).round().byte(), levels)
