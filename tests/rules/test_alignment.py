"""Alignment against NumPy, and against the angles that theory gives for large layers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from variants import LOCAL

from sstune.rules import alignment, begin_step, convert, feedback_layers
from sstune.schema import Redraw, RuleConfig, Scale

Rule = Callable[..., RuleConfig]


@pytest.mark.parametrize("scale", list(Scale))
@pytest.mark.parametrize("name", LOCAL)
def test_equals_numpy(name: str, scale: Scale, rule_config: Rule) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    convert(network, rule_config(name, scale), seed=0)
    with torch.no_grad():
        for layer in feedback_layers(network).values():
            layer.weight.neg_().view(-1)[:2] = 0.0
    measured = alignment(network)
    assert [entry.layer for entry in measured] == ["0", "4"]
    for entry, layer in zip(measured, feedback_layers(network).values(), strict=True):
        weight = layer.weight.detach().numpy().astype(np.float64).ravel()
        matrix = layer.feedback.matrix(layer.weight).numpy().astype(np.float64).ravel()
        cosine = weight @ matrix / np.sqrt((weight @ weight) * (matrix @ matrix))
        assert entry.angle == pytest.approx(np.degrees(np.arccos(min(cosine, 1.0))), abs=1e-5)
        assert entry.sign_agreement == np.mean(np.sign(weight) == np.sign(matrix))
        assert entry.rms_ratio == pytest.approx(np.sqrt(np.mean(matrix**2) / np.mean(weight**2)), rel=1e-10)
        assert (entry.sign_agreement == 1.0) == (name in ["sham", "usf", "frsf", "brsf", "kp", "pfa_o"])
        assert math.isnan(entry.update_cosine)


# How to draw W, and the cosine of W and sign(W): mean |W| over RMS. That of uniform magnitudes is sqrt(3)/2.
WEIGHTS = {
    "uniform": (lambda stream, shape: stream.uniform(-1, 1, shape), math.sqrt(3) / 2),
    "gaussian": (lambda stream, shape: stream.normal(0, 1, shape), math.sqrt(2 / math.pi)),
    "laplacian": (lambda stream, shape: stream.laplace(0, 1, shape), math.sqrt(1 / 2)),
}


@pytest.mark.parametrize("scale", [Scale.xavier, Scale.weight_rms])
@pytest.mark.parametrize(
    ("name", "weights", "degrees"),
    [
        ("sham", "gaussian", 0),
        ("usf", "uniform", 30),
        ("usf", "gaussian", 37),
        ("usf", "laplacian", 45),
        ("frsf", "uniform", 41),
        ("frsf", "gaussian", 46),
        ("frsf", "laplacian", 52),
        ("brsf", "uniform", 41),
        ("brsf", "gaussian", 46),
        ("brsf", "laplacian", 52),
        ("fa", "gaussian", 90),
        ("fa_signed", "uniform", 30),
        ("fa_signed", "gaussian", 37),
        ("kp", "gaussian", 0),
        ("kp-random", "gaussian", 90),
        ("wm", "gaussian", 0),
        ("wm-random", "gaussian", 90),
        ("pfa", "gaussian", 17.5),
        ("pfa-random", "gaussian", 90),
        ("pfa_o", "gaussian", 0),
        ("pfa_o-random", "gaussian", 90),
    ],
)
def test_angle_of_a_large_layer(
    name: str, weights: str, degrees: float, scale: Scale, rule_config: Rule
) -> None:
    draw, cosine = WEIGHTS[weights]
    layer = nn.Linear(500, 600, bias=False)
    layer.weight.data = torch.from_numpy(draw(np.random.default_rng(0), (600, 500))).float()
    network = nn.Sequential(layer)
    convert(network, rule_config(name, scale), seed=0)
    (measured,) = alignment(network)
    theory = {"usf": cosine, "fa_signed": cosine, "pfa": 1 / math.sqrt(1.1)}.get(name, 1.0)
    theory = cosine * math.sqrt(3) / 2 if name in ("frsf", "brsf") else theory
    theory = 0.0 if degrees == 90 else theory
    assert measured.angle == pytest.approx(math.degrees(math.acos(theory)), abs=0.4)
    assert measured.angle == pytest.approx(degrees, abs=0.8)
    if name != "pfa":
        assert measured.sign_agreement == pytest.approx(0.5 if degrees == 90 else 1.0, abs=0.01)
    if scale is Scale.weight_rms and not name.startswith("pfa"):
        assert measured.rms_ratio == pytest.approx(1.0, abs=1e-5)


def test_is_empty_for_a_plain_network() -> None:
    assert alignment(nn.Sequential(nn.Linear(2, 2))) == []


@pytest.mark.parametrize("name", LOCAL)
def test_of_zero_weights_is_not_a_number_and_does_not_fail(name: str, rule_config: Rule) -> None:
    network = nn.Sequential(nn.Linear(3, 2))
    convert(network, rule_config(name), seed=0)
    nn.init.zeros_(network[0].weight)
    (measured,) = alignment(network, lambda: network(torch.ones(1, 3)).square().sum())
    assert math.isnan(measured.angle)
    assert math.isnan(measured.rms_ratio)


@pytest.mark.parametrize("redraw", list(Redraw))
def test_is_of_the_latest_draw_and_draws_nothing(redraw: Redraw, rule_config: Rule) -> None:
    network = nn.Sequential(nn.Linear(30, 20))
    convert(network, rule_config("brsf", redraw=redraw), seed=0)
    assert alignment(network) == alignment(network)
    seen = [alignment(network)]
    for _ in range(2):
        begin_step(network)
        network(torch.rand(2, 30))
        seen.append(alignment(network))
    assert len({entry.angle for (entry,) in seen}) == 3
    assert feedback_layers(network)["0"].feedback.draws == 3
