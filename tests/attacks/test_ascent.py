"""FGSM, PGD and MI-FGSM against torchattacks' own, and against the formulae written out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchattacks
from torch import Tensor, nn
from victims import OWN, Labelled, batch_of, gradients, labelled, make, objective_of

from sstune.attacks import ATTACKS, AttackedModel, gradient_mode
from sstune.attacks.ascent import GradientAscent
from sstune.attacks.steps import FixedLength, Momentum
from sstune.backbones import Network
from sstune.catalogue import options
from sstune.datasets import Split
from sstune.schema import ATTACK_TRAITS, Gradient, Norm, RequestError

ULP = 1e-7  # of pixels near 1
RULES = ["bp", "usf", "frsf", "brsf", "fa"]
Converted = Callable[[str], Network]


def iterates(
    network: nn.Module, batch: Labelled, start: Tensor, eps: float, step: float, n: int, norm: Norm
) -> list[Tensor]:
    """The start and every projected step of each sample, whether it breaks or not."""
    found, images = [start], batch.images
    for _ in range(n):
        gradient = gradients(network, found[-1], batch.targets)
        if norm is Norm.Linf:
            moved = found[-1] + step * gradient.sign()
            low, high = (images - eps).clamp(0, 1), (images + eps).clamp(0, 1)
            found.append(torch.minimum(torch.maximum(moved, low), high))
            continue
        rows = gradient.flatten(1).double()
        moved = found[-1] + step * F.normalize(rows, eps=1e-300).view_as(gradient).float()
        delta = moved - images
        for row in delta:
            row *= min(1, eps / max(float(row.norm()), 1e-30))
        found.append((images + delta).clamp(0, 1))
    return found


def theirs(kind: type, network: nn.Module, **settings: Any) -> Any:
    return kind(nn.Sequential(network).eval(), **settings)  # without attributes that it might look at


class TestFgsm:
    @pytest.mark.parametrize("name", RULES)
    @pytest.mark.parametrize("gradient", OWN)
    @pytest.mark.parametrize("eps", [1 / 255, 8 / 255, 0.3, 1.0])
    def test_equals_torchattacks_and_the_formula(
        self, name: str, gradient: Gradient, eps: float, converted: Converted, test_split: Split
    ) -> None:
        """On samples wrong from the start, too: a surrogate errs on some that the victim has right."""
        network, batch = converted(name), batch_of(test_split)
        with gradient_mode(network, gradient):
            adversarial = make("fgsm")("", AttackedModel(network), batch, objective_of(batch), eps).images
            expected = theirs(torchattacks.FGSM, network, eps=eps)(batch.images, batch.targets)
            sign = gradients(network, batch.images, batch.targets).sign()
            wrong = network(batch.images).argmax(1) != batch.targets
        formula = (batch.images + eps * sign).clamp(0, 1)
        assert wrong.any()
        assert float((adversarial - expected).abs().max()) <= ULP
        assert float((adversarial - formula).abs().max()) <= ULP
        assert float((adversarial - batch.images).abs().max()) <= eps + ULP

    def test_in_l2_moves_along_the_gradient(self, network: Network, test_split: Split) -> None:
        batch, eps = batch_of(test_split), 0.5
        adversarial = make("fgsm", norm=Norm.L2)(
            "", AttackedModel(network), batch, objective_of(batch), eps
        ).images
        (_, expected) = iterates(network, batch, batch.images, eps, eps, 1, Norm.L2)
        assert float((adversarial - expected).abs().max()) <= 1e-6


class TestWholeTrajectories:
    """Without early exit, of every sample, from the start that torchattacks draws."""

    eps, steps = 16 / 255, 7

    def theirs_and_start(
        self, name: str, network: Network, batch: Labelled, random: bool
    ) -> tuple[Any, Tensor]:
        images, eps = batch.images, self.eps
        if name == "mifgsm":
            attack = theirs(torchattacks.MIFGSM, network, eps=eps, alpha=eps / 3, steps=self.steps, decay=0.7)
            return attack, images
        torch.manual_seed(7)
        settings: dict[str, Any] = {"alpha": eps / 3, "steps": self.steps, "random_start": random}
        if name == "pgd":
            noise = torch.empty_like(images).uniform_(-eps, eps)
            attack = theirs(torchattacks.PGD, network, eps=eps, **settings)
        else:
            noise = torch.empty_like(images).normal_()
            radius = torch.rand(len(images), 1, 1, 1)
            noise *= radius * eps / noise.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
            attack = theirs(torchattacks.PGDL2, network, eps=eps, eps_for_division=1e-30, **settings)
        torch.manual_seed(7)
        return attack, (images + noise).clamp(0, 1) if random else images

    def ours(self, name: str) -> GradientAscent:
        norm = Norm.L2 if name == "pgd_l2" else Norm.Linf
        rule = partial(FixedLength, size=self.eps / 3, norm=norm)
        if name == "mifgsm":
            rule = partial(Momentum, size=self.eps / 3, norm=norm, decay=0.7)
        return GradientAscent(self.steps, rule, norm, early_exit=False)

    @pytest.mark.parametrize("rule", ["bp", "usf", "brsf", "fa"])
    @pytest.mark.parametrize(
        ("name", "random"),
        [("pgd", True), ("pgd", False), ("pgd_l2", True), ("pgd_l2", False), ("mifgsm", False)],
    )
    def test_equal_torchattacks(
        self, name: str, random: bool, rule: str, converted: Converted, test_split: Split
    ) -> None:
        network, batch = converted(rule), batch_of(test_split)
        with gradient_mode(network, Gradient.rule):
            attack, start = self.theirs_and_start(name, network, batch, random)
            expected = attack(batch.images, batch.targets)
            found = self.ours(name)(
                AttackedModel(network), batch, objective_of(batch), start, self.eps
            ).images
        assert float((found - expected).abs().max()) <= (2e-6 if name == "pgd_l2" else 2 * ULP)
        assert float((found - start).abs().flatten(1).amax(1).min()) > 0  # every sample has moved

    @pytest.mark.parametrize("name", ["pgd", "pgd_l2", "mifgsm"])
    def test_equal_torchattacks_when_targeted(self, name: str, network: Network, test_split: Split) -> None:
        targets = (test_split.targets + 1 + torch.arange(len(test_split)) % 9) % 10
        batch = batch_of(test_split, targets)
        attack, start = self.theirs_and_start(name, network, batch, name != "mifgsm")
        attack.set_mode_targeted_by_label(quiet=True)
        torch.manual_seed(7)
        expected = attack(batch.images, targets)
        found = self.ours(name)(AttackedModel(network), batch, objective_of(batch), start, self.eps)
        assert float((found.images - expected).abs().max()) <= (2e-6 if name == "pgd_l2" else 2 * ULP)

    def test_of_the_named_attacks_are_these(self, network: Network, test_split: Split) -> None:
        """PGD and MI-FGSM pass on what their configurations say."""
        batch, model = batch_of(test_split), AttackedModel(network)
        settings: dict[str, Any] = {"steps": self.steps, "step_size": "eps/3", "early_exit": False}
        for name, attack in {
            "pgd": make("pgd", random_start=False, **settings),
            "pgd_l2": make("pgd", random_start=False, norm=Norm.L2, **settings),
            "mifgsm": make("mifgsm", decay=0.7, **settings),
        }.items():
            found = attack(attack.stages[0], model, batch, objective_of(batch), self.eps).images
            expected = self.ours(name)(model, batch, objective_of(batch), batch.images, self.eps).images
            assert torch.equal(found, expected), name


class TestEarlyExit:
    @pytest.mark.parametrize("name", ["bp", "usf"])
    @pytest.mark.parametrize("gradient", OWN)
    @pytest.mark.parametrize(("norm", "eps"), [(Norm.Linf, 40 / 255), (Norm.L2, 1.6)])
    def test_keeps_the_first_iterate_that_breaks_a_sample(
        self,
        name: str,
        gradient: Gradient,
        norm: Norm,
        eps: float,
        converted: Converted,
        test_split: Split,
    ) -> None:
        network, batch, steps = converted(name), batch_of(test_split), 10
        attack: Any = make("pgd", steps=steps, step_size="eps/4", norm=norm)
        start = attack.start(batch, eps, 0)
        with gradient_mode(network, gradient):
            attempt = attack("restart 0", AttackedModel(network), batch, objective_of(batch), eps)
            path = iterates(network, batch, start, eps, eps / 4, steps, norm)
            wrong = torch.stack([network(x).argmax(1) != batch.targets for x in path])
        first = torch.where(wrong.any(0), wrong.int().argmax(0), steps)
        expected = torch.stack(path)[first, torch.arange(len(first))]
        assert float((attempt.images - expected).abs().max()) <= 3e-6
        assert torch.equal(attempt.steps_to_success, torch.where(wrong.any(0), first, -1))
        assert len(first.unique()) > 3  # samples broke at different steps

    def test_without_it_effort_is_still_that_of_the_first(self, network: Network, test_split: Split) -> None:
        batch, model = batch_of(test_split), AttackedModel(network)
        for name in ("pgd", "mifgsm"):
            early, late = (
                make(name, steps=6, early_exit=exit_)(
                    make(name).stages[0], model, batch, objective_of(batch), 0.15
                )
                for exit_ in (True, False)
            )
            assert torch.equal(early.steps_to_success, late.steps_to_success)
            assert len(early.steps_to_success.unique()) > 3
            left = early.steps_to_success < 0
            assert torch.equal(early.images[left], late.images[left])
            assert not torch.equal(early.images, late.images)

    def test_a_success_that_a_later_step_undoes_counts(self) -> None:
        """The network is wrong on one narrow interval only, which the last step leaves again."""

        class Narrow(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                x = x.mean((1, 2, 3))
                wrong = ((x > 0.55) & (x < 0.65)).float() * 10
                return torch.stack([5 - x, x + wrong], 1)

        batch = labelled(torch.full((1, 1, 2, 2), 0.5), torch.tensor([0]), None, [0])
        attack = make("pgd", steps=3, step_size="0.1", random_start=False)
        attempt = attack("restart 0", AttackedModel(Narrow()), batch, objective_of(batch), 0.5)
        torch.testing.assert_close(attempt.images, torch.full_like(batch.images, 0.6))
        assert attempt.steps_to_success.tolist() == [1]

    def test_is_put_off_where_rounding_might_undo_it(self, network: Network, test_split: Split) -> None:
        """The first iterate that breaks may lie within half a grey level of the original."""
        batch, model = batch_of(test_split), AttackedModel(network)
        found = [
            make("pgd", steps=6, **fields)("restart 0", model, batch, objective_of(batch), 0.15).images
            for fields in ({"eight_bit": True}, {"early_exit": False}, {})
        ]
        assert torch.equal(found[0], found[1])
        assert not torch.equal(found[0], found[2])

    def test_restarts_count_the_steps_before_them(self, network: Network, test_split: Split) -> None:
        batch, model = batch_of(test_split), AttackedModel(network)
        attack: Any = make("pgd", steps=4, restarts=3)
        ascent = GradientAscent(4, partial(FixedLength, size=0.15 / 4, norm=Norm.Linf))
        for restart, stage in enumerate(attack.stages):
            found = attack(stage, model, batch, objective_of(batch), 0.15)
            start = attack.start(batch, 0.15, restart)
            expected = ascent(model, batch, objective_of(batch), start, 0.15)
            assert torch.equal(found.images, expected.images)
            broken = expected.steps_to_success >= 0
            assert broken.any()
            assert torch.equal(
                found.steps_to_success[broken], expected.steps_to_success[broken] + 4 * restart
            )
            assert (found.steps_to_success[~broken] == -1).all()

    def test_an_absolute_step_and_one_relative_to_eps_agree(
        self, network: Network, test_split: Split
    ) -> None:
        batch = batch_of(test_split)
        for norm, steps in ((Norm.Linf, ("eps/4", "2/255", "0.5*eps/2")), (Norm.L2, ("0.5*eps", "1.5"))):
            eps = 8 / 255 if norm is Norm.Linf else 3.0
            found = [
                make("pgd", step_size=step, norm=norm)(
                    "restart 0", AttackedModel(network), batch, objective_of(batch), eps
                ).images
                for step in steps
            ]
            for other in found[1:]:
                torch.testing.assert_close(found[0], other, rtol=0, atol=ULP)


class TestMomentum:
    def test_each_step_adds_the_gradient_at_mean_one(self, network: Network, test_split: Split) -> None:
        batch, eps, decay = batch_of(test_split), 0.1, 0.5
        attack = make("mifgsm", steps=3, decay=decay, early_exit=False)
        found = attack("", AttackedModel(network), batch, objective_of(batch), eps).images
        adversarial, velocity = batch.images, torch.zeros_like(batch.images)
        for _ in range(3):
            gradient = gradients(network, adversarial, batch.targets)
            velocity = decay * velocity + gradient / gradient.abs().mean((1, 2, 3), keepdim=True)
            moved = adversarial + eps / 4 * velocity.sign()
            adversarial = batch.images + (moved - batch.images).clamp(-eps, eps)
            adversarial = adversarial.clamp(0, 1)
        assert float((found - adversarial).abs().max()) <= 2 * ULP

    def test_a_gradient_of_zero_moves_nothing(self) -> None:
        class Flat(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return torch.stack([1 + 0 * x.sum((1, 2, 3)), 0 * x.sum((1, 2, 3))], 1)

        batch = labelled(torch.rand(2, 1, 3, 3), torch.tensor([0, 0]), None, [0, 1])
        for norm in Norm:
            for name in ("fgsm", "mifgsm"):
                attempt = make(name, norm=norm)("", AttackedModel(Flat()), batch, objective_of(batch), 0.1)
                assert torch.equal(attempt.images, batch.images)
                assert attempt.steps_to_success.tolist() == [-1, -1]


def test_every_option_names_an_attack_and_unknown_names_are_refused() -> None:
    assert set(ATTACKS) == {*options("attack")} - {"transfer", "audit"}  # MI-FGSM, and many attacks
    assert set(ATTACK_TRAITS) == {*ATTACKS, "audit"}
    with pytest.raises(RequestError, match=r"attack\.name: unknown 'fgms', did you mean 'fgsm'\?"):
        ATTACKS["fgms"]
