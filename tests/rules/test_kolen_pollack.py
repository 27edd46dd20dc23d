"""kp: V = W + c (V_0 - W_0) against a V that is trained as the paper says."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from literal import (
    ADAMW,
    LAYERS,
    SGD,
    STEPS,
    Mirror,
    Optimizer,
    assert_train_alike,
    difference,
    literal,
    network,
    train,
)
from torch import nn

from sstune.rules import begin_step, convert, feedback_layers, feedback_parameters
from sstune.schema import RuleConfig, Scale, Start

Rule = Callable[..., RuleConfig]

pytestmark = pytest.mark.parametrize("make", [*SGD.values(), *ADAMW.values()], ids=[*SGD, *ADAMW])


def converted(rule: RuleConfig) -> nn.Sequential:
    model = network()
    convert(model, rule, seed=0)
    return model


def decays(model: nn.Module) -> list[float]:
    return [float(layer.feedback.decay.detach()) for layer in feedback_layers(model).values()]


@pytest.mark.parametrize("scale", [Scale.weight_rms, Scale.xavier])
def test_equals_a_v_that_is_trained_by_the_same_optimiser(
    make: Optimizer, scale: Scale, rule_config: Rule
) -> None:
    model = converted(rule_config("kp", scale, start=Start.random))
    starts = {name: layer.feedback.matrix(layer.weight) for name, layer in feedback_layers(model).items()}
    to_the_letter = literal(network(), lambda name: Mirror(starts[name]))
    assert all(difference(starts[name], model[int(name)].weight) > 0.5 for name in LAYERS)
    assert_train_alike(model, to_the_letter, make)


def test_started_at_the_weights_it_is_backpropagation(make: Optimizer, rule_config: Rule) -> None:
    model, plain = converted(rule_config("kp")), network()
    assert feedback_parameters(model) == []
    for _ in zip(train(model, make), train(plain, make), strict=True):
        for name in LAYERS:
            assert difference(model[int(name)].weight, plain[int(name)].weight) < 1e-10


def test_only_weight_decay_brings_v_to_w(make: Optimizer, rule_config: Rule) -> None:
    """c is that of the optimiser's own weight decay: 1 without any, and less at each step with it."""
    model = converted(rule_config("kp", start=Start.random))
    has_decay = make([nn.Parameter(torch.ones(()))]).param_groups[0]["weight_decay"] > 0
    for _ in train(model, make):
        assert len(set(decays(model))) == 1
    assert (decays(model)[0] < 0.9) if has_decay else (decays(model)[0] == 1.0)


def test_a_frozen_layer_keeps_its_feedback(make: Optimizer, rule_config: Rule) -> None:
    model = converted(rule_config("kp", start=Start.random))
    model[2].weight.requires_grad_(False)
    before = model[2].feedback.matrix(model[2].weight)
    for _ in train(model, make, steps=5):
        pass
    assert decays(model)[1] == 1.0
    assert torch.equal(model[2].feedback.matrix(model[2].weight), before)


def test_goes_on_from_a_saved_state_exactly(make: Optimizer, rule_config: Rule) -> None:
    model = converted(rule_config("kp", start=Start.random))
    for _ in train(model, make, steps=5):
        begin_step(model)
    other = network()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    convert(other, rule_config("kp", start=Start.random), seed=1)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    for _ in zip(train(model, make, STEPS // 5), train(other, make, STEPS // 5), strict=True):
        for one, two in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(one, two)
