"""wm: V learns W from noise at the layer's input and what the layer makes of it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from oracle import gaussian
from torch import Tensor, nn

from sstune.rules import FEEDBACKS, alignment, begin_step, convert, feedback_layers
from sstune.schema import RuleConfig, Scale, Start

Rule = Callable[..., RuleConfig]

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(6, 5),
    "conv2d": lambda: nn.Conv2d(3, 4, (2, 3)),
    "conv1d-groups": lambda: nn.Conv1d(4, 6, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4),
    "transpose2d": lambda: nn.ConvTranspose2d(3, 4, (2, 3)),
    "transpose1d-groups": lambda: nn.ConvTranspose1d(4, 6, 3, groups=2),
}
EVERY_LAYER = pytest.mark.parametrize("which", LAYERS)


def made(which: str, rule: RuleConfig, seed: int = 0) -> Any:
    """A converted layer in float64."""
    torch.manual_seed(0)
    layer = LAYERS[which]().double()
    convert(nn.ModuleDict({"layer": layer}), rule, seed)
    return layer


def mirror(layer: Any, phases: int) -> Tensor:
    for _ in range(phases):
        layer.feedback.begin_step(layer.weight)
    matrix: Tensor = layer.feedback.matrix(layer.weight)
    return matrix


def error(matrix: Tensor, weight: Tensor) -> float:
    """Relative."""
    return float((matrix - weight.detach()).norm() / weight.detach().norm())


class TestLearning:
    @EVERY_LAYER
    def test_from_a_random_start_v_becomes_w(self, which: str, rule_config: Rule) -> None:
        layer = made(which, rule_config("wm", start=Start.random, rate=0.02, decay=0.02, samples=200))
        assert error(layer.feedback.matrix(layer.weight), layer.weight) > 0.5
        matrix = mirror(layer, 400)
        network = nn.ModuleDict({"layer": layer})
        (measured,) = alignment(network)
        assert measured.angle < 4
        assert error(matrix, layer.weight) < 0.07

    def test_v_becomes_rate_over_decay_times_w(self, rule_config: Rule) -> None:
        layer = made("linear", rule_config("wm", rate=0.03, decay=0.01, samples=500))
        assert error(mirror(layer, 800) / 3, layer.weight) < 0.05

    def test_v_follows_weights_that_change(self, rule_config: Rule) -> None:
        layer = made("conv2d", rule_config("wm", rate=0.05, decay=0.05, samples=300))
        with torch.no_grad():
            layer.weight.neg_()
        assert error(layer.feedback.matrix(layer.weight), layer.weight) == pytest.approx(2, rel=1e-10)
        assert error(mirror(layer, 150), layer.weight) < 0.1

    @EVERY_LAYER
    def test_one_phase_adds_the_rate_times_w_on_average(self, which: str, rule_config: Rule) -> None:
        """V <- (1 - decay) V + rate <y x^T>, and E[y x^T] = W."""
        rate, decay = 0.3, 0.2
        total = torch.zeros(())
        for seed in range(60):
            layer = made(which, rule_config("wm", rate=rate, decay=decay, samples=200), seed)
            total = total + mirror(layer, 1) / 60
        expected = (1 - decay + rate) * layer.weight.detach()
        assert error(total, expected) < 0.02

    def test_without_rate_only_decay_is_left(self, rule_config: Rule) -> None:
        layer = made("conv2d", rule_config("wm", start=Start.random, rate=0.0, decay=0.1))
        before = layer.feedback.matrix(layer.weight).clone()
        np.testing.assert_allclose(mirror(layer, 5), 0.9**5 * before, rtol=1e-12)

    @pytest.mark.parametrize("samples", [1, 7])
    def test_a_phase_has_the_rank_of_its_noise(self, samples: int, rule_config: Rule) -> None:
        torch.manual_seed(0)
        layer: Any = nn.Linear(20, 15).double()
        convert(nn.ModuleList([layer]), rule_config("wm", rate=1.0, decay=1.0, samples=samples), seed=0)
        matrix = mirror(layer, 1)
        assert torch.linalg.matrix_rank(matrix) == samples

    def test_the_spread_of_one_phase_falls_with_the_samples(self, rule_config: Rule) -> None:
        spread = []
        for n in (100, 10000):
            layer = made("linear", rule_config("wm", rate=1.0, decay=1.0, samples=n))
            spread.append(error(mirror(layer, 1), layer.weight))
        assert spread[0] / spread[1] == pytest.approx(math.sqrt(100), rel=0.5)


class TestNoise:
    def test_is_the_rules_own(self, rule_config: Rule) -> None:
        layer = made("conv2d", rule_config("wm"))
        states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        mirror(layer, 3)
        assert torch.equal(torch.get_rng_state(), states[0])
        assert np.random.get_state()[1].tolist() == states[1]
        assert random.getstate() == states[2]

    def test_is_keyed_by_seed_layer_and_phase(self, rule_config: Rule) -> None:
        rule = rule_config("wm", rate=1.0, decay=1.0, samples=3)  # V is that of the last phase alone
        layer = LAYERS["linear"]().double()
        seen = set()
        for seed, name in ((0, "a"), (0, "b"), (1, "a")):
            feedback, again = (FEEDBACKS["wm"](layer, rule, seed, name) for _ in range(2))
            for _ in range(3):
                feedback.begin_step(layer.weight)
                again.begin_step(layer.weight)
                assert torch.equal(feedback.matrix(layer.weight), again.matrix(layer.weight))
                seen.add(tuple(feedback.matrix(layer.weight).flatten().tolist()))
        assert len(seen) == 9

    def test_leaves_weight_and_gradients_alone(self, rule_config: Rule) -> None:
        layer = made("linear", rule_config("wm"))
        layer(gaussian(2, 6)).sum().backward()
        kept = layer.weight.detach().clone(), layer.weight.grad.clone()
        matrix = mirror(layer, 2)
        assert torch.equal(layer.weight, kept[0])
        assert torch.equal(layer.weight.grad, kept[1])
        assert not matrix.requires_grad


def test_a_forward_changes_nothing(rule_config: Rule) -> None:
    layer = made("linear", rule_config("wm"))
    mirror(layer, 2)
    before = layer.feedback.matrix(layer.weight).clone()
    for mode in (True, False):
        layer.train(mode)(gaussian(2, 6)).sum().backward()
    assert torch.equal(layer.feedback.matrix(layer.weight), before)
    assert layer.feedback.phases == 2


@pytest.mark.parametrize("scale", list(Scale))
@pytest.mark.parametrize("start", list(Start))
def test_goes_on_from_a_saved_state_exactly(start: Start, scale: Scale, rule_config: Rule) -> None:
    def network(seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 2))
        convert(model, rule_config("wm", scale, start=start), seed=0)
        return model

    trained, resumed = network(0), network(1)
    for _ in range(3):
        begin_step(trained)
    resumed.load_state_dict(trained.state_dict())
    for _ in range(3):
        for one, two in zip(*(feedback_layers(m).values() for m in (trained, resumed)), strict=True):
            assert torch.equal(one.feedback.matrix(one.weight), two.feedback.matrix(two.weight))
        begin_step(trained)
        begin_step(resumed)
