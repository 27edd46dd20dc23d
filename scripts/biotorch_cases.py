"""Test cases for a layer, run with sstune and with BioTorch.

"passes" means that the output is the plain layer's, and that the gradients are those of autograd through W
(for the weights) and through V (for the input).
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call

from sstune import rules
from sstune.rules.layers import FeedbackLayer
from sstune.schema import BrsfConfig, RuleConfig, Scale


def ours(network: nn.Module, rule: str, scale: str = "xavier") -> nn.Module:
    """``network``, converted by sstune."""
    settings = BrsfConfig if rule == "brsf" else RuleConfig
    rules.convert(network, settings(name=rule, scale=Scale(scale)), seed=0)
    return network


def theirs(network: nn.Module, rule: str, init: str = "xavier", constrain: bool = False) -> nn.Module:
    """``network``, converted by BioTorch's own converter; its submodules are called ``module.<name>``."""
    biomodule = importlib.import_module("biotorch.module.biomodule")
    options = {"constrain_weights": constrain, "gradient_clip": False, "init": init}
    with contextlib.redirect_stdout(io.StringIO()):
        converted: nn.Module = biomodule.BioModule(
            network, rule, layer_config={"type": rule, "options": options}, output_dim=10
        )
    return converted


SIDES: dict[str, Callable[..., nn.Module]] = {"ours": ours, "biotorch": theirs}


def gap(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference, relative to the norm of ``expected``."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


class Wrong(Exception):
    """A result differs from the expected one; the message says how."""


@dataclass(frozen=True)
class Case:
    """A layer and its input, to be run by ``run(network, x)``; ``init``: each side's word for the scale."""

    layer: Callable[[], nn.Module]
    shape: tuple[int, ...]
    rule: str = "usf"
    init: tuple[str, str] = ("xavier", "xavier")
    run: Callable[[nn.Module, Tensor], Tensor] = lambda network, x: network(x)
    flip: bool = False  # the weight's sign after conversion
    tolerance: float = 1e-5


def under_autocast(network: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y: Tensor = network(x)
    return y.float()


def compiled(network: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = torch.compile(network, fullgraph=True, backend="aot_eager")(x)
    return y


def convolution(**settings: Any) -> Callable[[], nn.Module]:
    return partial(nn.Conv2d, 3, 4, 3, **settings)


CASES = {
    "Linear, 3-d input": Case(lambda: nn.Linear(6, 5), (2, 3, 6)),
    "Linear, out_features=1": Case(lambda: nn.Linear(6, 1), (4, 6)),
    "Conv1d": Case(lambda: nn.Conv1d(3, 4, 3), (2, 3, 8)),
    "Conv2d, padding_mode='reflect'": Case(convolution(padding=1, padding_mode="reflect"), (2, 3, 8, 8)),
    "Conv2d, padding='same'": Case(convolution(padding="same"), (2, 3, 8, 8)),
    "Linear, bf16 autocast": Case(lambda: nn.Linear(6, 5), (4, 6), run=under_autocast, tolerance=0.02),
    "Conv2d, bf16 autocast": Case(convolution(), (2, 3, 8, 8), run=under_autocast, tolerance=0.02),
    "Conv2d, torch.compile(fullgraph)": Case(convolution(), (2, 3, 8, 8), run=compiled),
    "Linear, brsf, init not xavier": Case(
        lambda: nn.Linear(6, 5), (4, 6), rule="brsf", init=("he_fan_out", "kaiming")
    ),
    "Conv2d, frsf, signs flipped": Case(convolution(), (2, 3, 8, 8), rule="frsf", flip=True),
}


def converted_layer(network: nn.Module) -> nn.Module:
    """The layer of a network that has only one."""
    return next(module for module in network.modules() if hasattr(module, "weight"))


def parameters(layer: nn.Module) -> list[Tensor]:
    return [layer.get_parameter("weight"), layer.get_parameter("bias")]


def magnitude(layer: nn.Module) -> Tensor:
    """\\|V\\| of the latest forward."""
    weight = layer.get_parameter("weight")
    if isinstance(layer, FeedbackLayer):
        return layer.feedback.matrix(weight).abs()
    return layer.get_parameter("weight_backward").abs()


def run_case(case: Case, side: str) -> None:
    """Run one case; raise Wrong, or the error of the side."""
    torch.manual_seed(0)
    plain = case.layer()
    x = torch.randn(case.shape, requires_grad=True)
    network = SIDES[side](nn.Sequential(copy.deepcopy(plain)), case.rule, case.init[side == "biotorch"])
    layer = converted_layer(network)
    if type(layer) is type(plain):
        raise Wrong(f"{type(plain).__name__} stays a plain layer")
    before = magnitude(layer)
    if case.flip:
        with torch.no_grad():
            plain.get_parameter("weight").neg_()
            layer.get_parameter("weight").neg_()
    y = case.run(network, x)
    weight, bias = parameters(plain)
    local = plain(x.detach())
    v = (before if case.rule == "frsf" else magnitude(layer)) * weight.sign()
    through = functional_call(plain, {"weight": v.detach(), "bias": bias.detach()}, (x,))
    expected_y = local + through - through.detach()
    judge("output", y, expected_y, case.tolerance)
    delta = torch.randn_like(expected_y)
    found = torch.autograd.grad(y, [x, *parameters(layer)], delta)
    expected = torch.autograd.grad(expected_y, [x, weight, bias], delta)
    for what, one, two in zip(["input", "weight", "bias"], found, expected, strict=True):
        judge(f"{what} gradient", one, two, case.tolerance)


def judge(what: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    if found.shape != expected.shape:
        raise Wrong(f"{what} has shape {tuple(found.shape)} instead of {tuple(expected.shape)}")
    difference = gap(found, expected)
    if not difference <= tolerance:
        raise Wrong(f"{what} differs by {difference:.0%}")


def run_angle(side: str) -> None:
    """frsf: the angle between W and V that is reported."""
    torch.manual_seed(0)
    network = SIDES[side](nn.Sequential(nn.Linear(60, 50)), "frsf")
    layer = converted_layer(network)
    weight = layer.get_parameter("weight").detach()
    v = magnitude(layer) * weight.sign()
    true = math.degrees(torch.arccos(nn.functional.cosine_similarity(weight.flatten(), v.flatten(), 0)))
    ask = getattr(layer, "compute_alignment", None)
    reported = float(ask()) if ask else rules.alignment(network)[0].angle
    if abs(reported - true) > 0.1:
        raise Wrong(f"reports {reported:.0f} degrees, they are {true:.0f}")


def run_step(side: str) -> None:
    """An optimiser made after conversion steps twice, with BioTorch's constrain_weights (we have no such)."""
    torch.manual_seed(0)
    options = {"constrain": True} if side == "biotorch" else {}
    network = SIDES[side](nn.Sequential(nn.Linear(6, 5)), "usf", **options)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(2):
        before = converted_layer(network).get_parameter("weight").detach().clone()
        network(torch.ones(4, 6)).sum().backward()
        optimizer.step()
    if torch.allclose(converted_layer(network).get_parameter("weight"), before):
        raise Wrong("the optimiser no longer holds the layer's weight, which stays as it is")


def compare_cases() -> tuple[pd.DataFrame, bool]:
    """One line per case, with the outcome on each side."""
    runs: dict[str, Callable[[str], None]] = {name: partial(run_case, case) for name, case in CASES.items()}
    runs["frsf, reported angle"] = run_angle
    runs["constrain_weights, then SGD"] = run_step
    lines = [{"case": name, **{side: outcome(run, side) for side in SIDES}} for name, run in runs.items()]
    return pd.DataFrame(lines), all(line["ours"] == "passes" for line in lines)


def outcome(run: Callable[[str], None], side: str) -> str:
    try:
        run(side)
    except Wrong as error:
        return str(error)
    except Exception as error:  # any error is a result
        message = next(iter(str(error).strip().splitlines()), "")
        return f"{type(error).__name__}: {message}"[:120]
    return "passes"
