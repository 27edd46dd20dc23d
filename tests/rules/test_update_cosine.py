"""The cosine of the rule's update and the true gradient, and that measuring it changes nothing."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from direct_oracle import direct, projections
from oracle import feedback_of, gaussian, oracle
from torch import Tensor, nn
from variants import DFA, EVERY, IS_BP, LOCAL

from sstune.rules import alignment, begin_step, convert, exact_gradients, feedback_layers
from sstune.schema import Redraw, RuleConfig

Rule = Callable[..., RuleConfig]

LABELS = torch.arange(6) % 3
WHERE = ["0", "3", "6"]


def network() -> nn.Sequential:
    """With BatchNorm, whose modes differ, and dropout, which draws."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(),
        nn.ConvTranspose2d(4, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(75, 3), nn.Dropout(0.5),
    ).double()  # fmt: skip


def images(n: int = 6) -> Tensor:
    return gaussian(n, 2, 6, 6)


def converted(rule: RuleConfig) -> nn.Sequential:
    model = network()
    convert(model, rule, seed=0, example=images(2))
    return model


def loss_of(model: nn.Module) -> Callable[[], Tensor]:
    return lambda: F.cross_entropy(model(images()), LABELS)


def cosines(model: nn.Module) -> list[float]:
    return [entry.update_cosine for entry in alignment(model, loss_of(model))]


def cosine(one: Tensor, two: Tensor) -> float:
    return float((one * two).sum() / (one.square().sum() * two.square().sum()).sqrt())


def weight_gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [model.get_parameter(f"{name}.weight") for name in WHERE]))


@pytest.mark.parametrize("name", IS_BP)
def test_is_one_where_the_rule_is_backpropagation(name: str, rule_config: Rule) -> None:
    assert cosines(converted(rule_config(name))) == pytest.approx([1.0] * 3, abs=1e-12)


@pytest.mark.parametrize("name", [name for name in LOCAL if name not in IS_BP])
def test_equals_that_of_the_expression(name: str, rule_config: Rule) -> None:
    rule, plain = rule_config(name), network().eval()
    model = converted(rule)
    x: Tensor = images()
    for key, module in plain.named_children():
        matrix = feedback_of(rule, model.get_submodule(key)) if key in WHERE else None
        x = module(x) if matrix is None else oracle(module, matrix, x)
    by_rule = weight_gradients(plain, F.cross_entropy(x, LABELS))
    exact = weight_gradients(plain, loss_of(plain)())
    expected = [cosine(one, two) for one, two in zip(by_rule, exact, strict=True)]
    assert expected[0] < 0.999
    assert cosines(model) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("name", DFA)
def test_of_dfa_equals_that_of_its_expression_and_no_angle_is_claimed(name: str, rule_config: Rule) -> None:
    model, plain = converted(rule_config(name)), network().eval()
    by_rule = weight_gradients(plain, F.cross_entropy(direct(plain, projections(model), images()), LABELS))
    exact = weight_gradients(plain, loss_of(plain)())
    expected = [cosine(one, two) for one, two in zip(by_rule, exact, strict=True)]
    assert cosines(model) == pytest.approx(expected, abs=1e-10)
    for entry in alignment(model):
        assert math.isnan(entry.angle)
        assert math.isnan(entry.sign_agreement)
        assert math.isnan(entry.rms_ratio)


@pytest.mark.parametrize("name", EVERY)
def test_of_the_head_is_one_under_every_rule(name: str, rule_config: Rule) -> None:
    assert cosines(converted(rule_config(name)))[-1] == pytest.approx(1.0, abs=1e-12)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything that a training run goes on from."""
    gradients = {name: value.grad for name, value in model.named_parameters()}
    state = {f"state {key}": value for key, value in model.state_dict().items()}
    flags = {f"mode {name}": module.training for name, module in model.named_modules()}
    exact = {f"exact {name}": layer.exact for name, layer in feedback_layers(model).items()}
    return copy.deepcopy({**state, **gradients, **flags, **exact, "random": torch.get_rng_state()})


FORMS = [*((name, {}) for name in EVERY), ("brsf", {"redraw": Redraw.forward})]


@pytest.mark.parametrize(("name", "fields"), FORMS, ids=[*EVERY, "brsf-forward"])
def test_measuring_changes_nothing(name: str, fields: dict[str, Any], rule_config: Rule) -> None:
    model = converted(rule_config(name, **fields))
    model.train()
    model[1].eval()  # a BatchNorm that is frozen stays so
    begin_step(model)
    loss_of(model)().backward()
    before = snapshot(model)
    measured = alignment(model, loss_of(model))
    after = snapshot(model)
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(value, after[key]) if isinstance(value, Tensor) else value == after[key], key
    assert alignment(model, loss_of(model)) == measured or name in DFA
    other = converted(rule_config(name, **fields)).train()  # goes on as one that was never measured
    other[1].eval()
    begin_step(other)
    loss_of(other)().backward()
    for each in (model, other):
        each.zero_grad()
        begin_step(each)
        torch.manual_seed(1)
        loss_of(each)().backward()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad)


@pytest.mark.parametrize("name", ["usf", "kp-random", "dfa"])
class TestCircumstances:
    def test_within_no_grad_and_exact_gradients(self, name: str, rule_config: Rule) -> None:
        model = converted(rule_config(name))
        expected = cosines(model)
        with torch.no_grad():
            assert cosines(model) == expected
        with exact_gradients(model):
            assert cosines(model) == pytest.approx([1.0] * 3, abs=1e-12)
            assert all(layer.exact for layer in feedback_layers(model).values())
        assert not any(layer.exact for layer in feedback_layers(model).values())

    def test_modes_come_back_after_a_loss_that_fails(self, name: str, rule_config: Rule) -> None:
        model = converted(rule_config(name)).train()

        def fails() -> Tensor:
            assert not model.training
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            alignment(model, fails)
        assert all(module.training for module in model.modules())

    def test_of_a_frozen_layer_is_not_a_number(self, name: str, rule_config: Rule) -> None:
        model = converted(rule_config(name))
        expected = cosines(model)
        model[3].weight.requires_grad_(False)
        found = cosines(model)
        assert math.isnan(found[1])
        assert [found[0], found[2]] == pytest.approx([expected[0], expected[2]], abs=1e-12)

    def test_of_a_zero_gradient_is_not_a_number(self, name: str, rule_config: Rule) -> None:
        model = converted(rule_config(name))
        found = alignment(model, lambda: model(images())[:, 0].sum() * 0)
        assert all(math.isnan(entry.update_cosine) for entry in found)
