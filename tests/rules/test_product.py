"""pfa and pfa_o: the closed form against V = B R with an R that is trained as the paper says."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from literal import (
    ADAMW,
    SGD,
    Mirror,
    Optimizer,
    Product,
    assert_train_alike,
    literal,
    network,
    train,
)
from oracle import mixed, product
from torch import Tensor, nn

from sstune.rules import alignment, convert, feedback_layers, feedback_parameters
from sstune.schema import RuleConfig, Scale, Start

Rule = Callable[..., RuleConfig]


def converted(rule: RuleConfig, seed: int = 0) -> nn.Sequential:
    model = network()
    convert(model, rule, seed)
    return model


def by_layer(model: nn.Module) -> dict[str, Any]:
    return {name: layer.feedback for name, layer in feedback_layers(model).items()}


def to_the_letter(kept: nn.Sequential) -> nn.Sequential:
    """With the B, the R_0 and the mask of a network that keeps R."""
    feedback = by_layer(kept)
    return literal(
        network(),
        lambda name: Product(feedback[name].fixed, feedback[name].trained.detach(), feedback[name].mask),
    )


FORMS = [
    *(("pfa", {"expansion": e}) for e in (1.0, 2.5, 10.0)),
    ("pfa_o", {}),
]
EVERY_FORM = pytest.mark.parametrize(("name", "fields"), FORMS, ids=["pfa-1", "pfa-2.5", "pfa-10", "pfa_o"])
BOTH_STARTS = pytest.mark.parametrize("start", list(Start))


@BOTH_STARTS
@EVERY_FORM
@pytest.mark.parametrize("make", SGD.values(), ids=SGD)
def test_closed_form_equals_a_trained_r_under_sgd(
    make: Optimizer, name: str, fields: dict[str, Any], start: Start, rule_config: Rule
) -> None:
    kept = converted(rule_config(name, start=start, closed_form=False, **fields))
    closed = converted(rule_config(name, start=start, **fields))
    assert_train_alike(closed, to_the_letter(kept), make)


@BOTH_STARTS
@EVERY_FORM
@pytest.mark.parametrize("make", [SGD["nesterov"], *ADAMW.values()], ids=["nesterov", *ADAMW])
def test_a_kept_r_is_trained_to_the_letter_by_any_optimiser(
    make: Optimizer, name: str, fields: dict[str, Any], start: Start, rule_config: Rule
) -> None:
    kept = converted(rule_config(name, start=start, closed_form=False, **fields))
    assert_train_alike(kept, to_the_letter(kept), make)


@pytest.mark.parametrize("make", [SGD["nesterov"], ADAMW["adamw"]], ids=["nesterov", "adamw"])
@BOTH_STARTS
def test_a_masked_r_is_trained_where_it_exists(make: Optimizer, start: Start, rule_config: Rule) -> None:
    kept = converted(rule_config("pfa", start=start, closed_form=False, density=0.4, expansion=3.0))
    assert_train_alike(kept, to_the_letter(kept), make)
    for feedback in by_layer(kept).values():
        assert (feedback.trained[~feedback.mask] == 0).all()
        assert (feedback.trained[feedback.mask] != 0).any()


@pytest.mark.parametrize("make", [*SGD.values(), *ADAMW.values()], ids=[*SGD, *ADAMW])
def test_an_orthogonal_b_makes_it_kolen_pollack(make: Optimizer, rule_config: Rule) -> None:
    """dV = B B^T dW = dW: a V that is trained as in kp, from the same start."""
    closed = converted(rule_config("pfa_o", start=Start.random))
    starts = {name: feedback.matrix(closed[int(name)].weight) for name, feedback in by_layer(closed).items()}
    assert_train_alike(closed, literal(network(), lambda name: Mirror(starts[name])), make)


@BOTH_STARTS
def test_a_frozen_layer_keeps_its_feedback(start: Start, rule_config: Rule) -> None:
    for closed_form in (True, False):
        model = converted(rule_config("pfa", start=start, closed_form=closed_form))
        model[2].weight.requires_grad_(False)
        before = model[2].feedback.matrix(model[2].weight)
        for _ in train(model, SGD["nesterov"], steps=4):
            pass
        assert torch.equal(model[2].feedback.matrix(model[2].weight), before)


class TestStart:
    @EVERY_FORM
    def test_at_the_weights_v_is_b_bt_w(self, name: str, fields: dict[str, Any], rule_config: Rule) -> None:
        kept = converted(rule_config(name, closed_form=False, **fields))
        closed = converted(rule_config(name, **fields))
        for key, feedback in by_layer(kept).items():
            weight = closed[int(key)].weight.detach()
            mix = feedback.fixed @ feedback.fixed.mT
            expected = mixed(closed[int(key)], mix, weight)
            for each in (kept, closed):
                np.testing.assert_allclose(by_layer(each)[key].matrix(weight), expected, rtol=0, atol=1e-12)
        assert feedback_parameters(closed) == []

    @EVERY_FORM
    def test_at_random_v_is_b_r_whatever_the_weights_are(
        self, name: str, fields: dict[str, Any], rule_config: Rule
    ) -> None:
        kept = converted(rule_config(name, Scale.xavier, start=Start.random, closed_form=False, **fields))
        closed = converted(rule_config(name, Scale.xavier, start=Start.random, **fields))
        for key, feedback in by_layer(kept).items():
            expected = product(kept[int(key)], feedback.fixed, feedback.trained.detach())
            for each in (kept, closed):
                found = by_layer(each)[key].matrix(each[int(key)].weight)
                np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
        other = nn.ModuleDict({key: nn.Linear(64, 3).double() for key in ("7",)})
        convert(other, rule_config(name, Scale.xavier, start=Start.random, **fields), seed=0)
        expected = by_layer(kept)["7"].matrix(kept[7].weight)
        np.testing.assert_allclose(by_layer(other)["7"].matrix(other["7"].weight), expected, atol=1e-12)

    def test_pfa_o_in_float32_is_the_weight(self, rule_config: Rule) -> None:
        for closed_form, largest in ((True, 0.0), (False, 1e-6)):
            model = network().float()
            convert(model, rule_config("pfa_o", closed_form=closed_form), seed=0)
            for name, feedback in by_layer(model).items():
                weight = model[int(name)].weight.detach()
                assert float((feedback.matrix(weight) - weight).abs().max()) <= largest

    @pytest.mark.parametrize(("scale", "expected"), [(Scale.xavier, math.sqrt(2 / 700)), (Scale.unit, 1.0)])
    def test_a_random_r_has_the_scale_of_a_layer_of_its_own_shape(
        self, scale: Scale, expected: float, rule_config: Rule
    ) -> None:
        model = nn.Sequential(nn.Linear(300, 200))
        convert(model, rule_config("pfa", scale, start=Start.random, closed_form=False, expansion=2.0), 0)
        trained = by_layer(model)["0"].trained.detach()
        assert trained.shape == (1, 400, 300)
        assert float(trained.square().mean().sqrt()) == pytest.approx(expected, rel=0.01)

    @pytest.mark.parametrize("expansion", [1.0, 10.0])
    def test_a_random_v_has_the_rms_of_w_under_weight_rms(self, expansion: float, rule_config: Rule) -> None:
        model = nn.Sequential(nn.Linear(300, 200))
        convert(model, rule_config("pfa", start=Start.random, expansion=expansion), seed=0)
        (measured,) = alignment(model)
        assert measured.rms_ratio == pytest.approx(1.0, rel=0.03)
        assert measured.angle == pytest.approx(90, abs=1)


class TestB:
    @staticmethod
    def fixed(rule: RuleConfig, seed: int, layer: nn.Module | None = None) -> Tensor:
        model = nn.ModuleList([layer or nn.Conv2d(4, 6, 3, groups=2).double()])
        convert(model, rule, seed)
        fixed: Tensor = by_layer(model)["0"].fixed
        return fixed

    @pytest.mark.parametrize("expansion", [1.0, 2.5, 10.0])
    def test_of_pfa_is_orthonormal_on_average_and_uniform(self, expansion: float, rule_config: Rule) -> None:
        rule = rule_config("pfa", closed_form=False, expansion=expansion)
        drawn = torch.stack([self.fixed(rule, seed) for seed in range(1500)])
        mid = round(expansion * 3)
        assert drawn.shape == (1500, 2, 3, mid)
        mean = (drawn @ drawn.mT).mean(0)
        np.testing.assert_allclose(mean, torch.eye(3).expand(2, 3, 3), atol=0.08)
        assert float(drawn.abs().max()) == pytest.approx(math.sqrt(3 / mid), rel=0.01)
        assert float(drawn.mean()) == pytest.approx(0, abs=0.02)

    @pytest.mark.parametrize("layer", [lambda: nn.Linear(30, 40), lambda: nn.Conv1d(8, 12, 3, groups=4)])
    def test_of_pfa_o_is_orthogonal(self, layer: Callable[[], nn.Module], rule_config: Rule) -> None:
        fixed = self.fixed(rule_config("pfa_o", closed_form=False), 0, layer().double())
        np.testing.assert_allclose(fixed @ fixed.mT, torch.eye(fixed.shape[1]).expand_as(fixed), atol=1e-12)
        assert len(fixed) == 1 or not torch.allclose(fixed[0], fixed[1])

    def test_is_keyed_by_seed_and_layer_and_groups_differ(self, rule_config: Rule) -> None:
        rule = rule_config("pfa", closed_form=False)
        first = self.fixed(rule, 0)
        assert torch.equal(first, self.fixed(rule, 0))
        assert not torch.equal(first, self.fixed(rule, 1))
        assert not torch.equal(first[0], first[1])
        fixed = [feedback.fixed for feedback in by_layer(converted(rule)).values()]
        assert not torch.equal(fixed[0][0, :2, :20], fixed[2][0, :, :20])

    def test_closed_form_costs_the_same_for_every_expansion(self, rule_config: Rule) -> None:
        def kept(expansion: float) -> int:
            model = converted(rule_config("pfa", start=Start.random, expansion=expansion))
            return sum(
                tensor.numel()
                for feedback in by_layer(model).values()
                for tensor in (*feedback.buffers(), *feedback.parameters())
            )

        assert kept(1.0) == kept(10.0)


class TestMasks:
    @pytest.mark.parametrize("density", [0.1, 0.5])
    def test_have_the_density_that_was_asked_for(self, density: float, rule_config: Rule) -> None:
        model = nn.Sequential(nn.Linear(120, 100))
        rule = rule_config("pfa", closed_form=False, density=density, expansion=2.0, start=Start.random)
        convert(model, rule, seed=0)
        feedback = by_layer(model)["0"]
        assert float((feedback.fixed != 0).double().mean()) == pytest.approx(density, rel=0.05)
        assert float(feedback.mask.double().mean()) == pytest.approx(density, rel=0.05)
        assert torch.equal(feedback.trained != 0, feedback.mask)

    def test_leave_v_the_weights_on_average(self, rule_config: Rule) -> None:
        rule = rule_config("pfa", closed_form=False, density=0.5, expansion=4.0)
        total = torch.zeros(3, 5, dtype=torch.float64)
        weight = torch.arange(15, dtype=torch.float64).reshape(3, 5) / 10
        for seed in range(3000):
            layer = nn.Linear(5, 3).double()
            layer.weight = nn.Parameter(weight.clone())
            convert(nn.ModuleList([layer]), rule, seed)
            total += layer.feedback.matrix(layer.weight)
        np.testing.assert_allclose(total / 3000, weight, atol=0.06)


@pytest.mark.parametrize(
    ("name", "expansion", "degrees"), [("pfa", 1.0, 45), ("pfa", 2.5, 32.3), ("pfa", 10.0, 17.5)]
)
@pytest.mark.parametrize("closed_form", [True, False])
def test_angle_of_a_large_layer_at_the_weights(
    name: str, expansion: float, degrees: float, closed_form: bool, rule_config: Rule
) -> None:
    """cos = 1/sqrt(1 + 1/e), as tr(P)/n is 1 and tr(P^2)/n is 1 + 1/e."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(400, 300))
    convert(model, rule_config(name, expansion=expansion, closed_form=closed_form), seed=0)
    (measured,) = alignment(model)
    assert measured.angle == pytest.approx(math.degrees(math.atan(expansion**-0.5)), abs=0.4)
    assert measured.angle == pytest.approx(degrees, abs=0.5)


@pytest.mark.parametrize("closed_form", [True, False])
def test_angle_of_pfa_o_is_zero(closed_form: bool, rule_config: Rule) -> None:
    model = network()
    convert(model, rule_config("pfa_o", closed_form=closed_form), seed=0)
    assert all(entry.angle < 1e-5 for entry in alignment(model))


def test_layers_differ_in_all_they_draw(rule_config: Rule) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    convert(model, rule_config("pfa", start=Start.random, closed_form=False), seed=0)
    one, two = by_layer(model).values()
    for name, mine in itertools.chain(one.named_parameters(), one.named_buffers()):
        assert not torch.equal(mine, getattr(two, name))
