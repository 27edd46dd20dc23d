"""Networks that others' code makes: all that torch runs can be attacked, and a change is another run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sstune.commands.imported import check_outputs, digest, make
from sstune.schema import RequestError

Ask = Callable[..., Any]
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")  # the one that cannot be copied
NETS = """
import torch
from torch import nn

class Views(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.linear = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(64, 10)

    def forward(self, images):
        hidden = nn.functional.max_pool2d(self.conv(images).relu(), 2)
        return self.linear(hidden.view(-1, 64))

class Undefined(Views):
    always = False

    def forward(self, images):
        between = (images * 16 - (images * 16).round()).abs().amax((1, 2, 3), keepdim=True) > 1e-3
        return super().forward(images) * torch.where(between.flatten(1) | self.always, torch.nan, 1.0)

class Cut(Views):
    def forward(self, images):
        return super().forward(images.detach())

class Noisy(Views):
    def forward(self, images):
        return super().forward(images + 0.3 * torch.randn_like(images))
"""
FACTORY = """
import threading
import others_nets
from torch import nn

def views():
    return others_nets.Views().eval()

def cut():
    return others_nets.Cut().eval()

def noisy():
    return others_nets.Noisy().eval()

def locked():
    network = others_nets.Views().eval()
    network.lock = threading.Lock()
    return network

def attacked_nan():
    return others_nets.Undefined().eval()

def always_nan():
    network = others_nets.Undefined().eval()
    network.always = True
    return network

def spoilt():
    network = others_nets.Views().eval()
    network.linear.bias.data[3] = float("nan")
    return network

def broken():
    raise KeyError("weights")

def normed():
    network = others_nets.Views().eval()
    nn.utils.weight_norm(network.conv)
    return network

shared = normed()
"""
LINE = ["dataset=digits", "attack.n=40", "attack.eps=[24/255]", "threads=1", "device=cpu"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "others_nets.py").write_text(NETS)
    (tmp_path / "others_factory.py").write_text(FACTORY)
    yield tmp_path
    for name in ("others_nets", "others_factory"):
        sys.modules.pop(name, None)


def measured(folder: Path) -> list[dict[str, Any]]:
    (path,) = folder.glob("runs/attack/*/result.json")
    found: list[dict[str, Any]] = json.loads(path.read_text())["measurements"]
    return found


@pytest.mark.parametrize("attack", ["pgd", "apgd", "fab_t"])
@pytest.mark.parametrize("name", ["views", "cut", "noisy"])
def test_can_be_attacked(name: str, attack: str, ask: Ask, folder: Path) -> None:
    """It takes views; it has no gradient; it never judges twice alike."""
    line = [*LINE, f"attack={attack}", "attack.steps=3"]
    answer = ask("attack", f"model.factory=others_factory:{name}", *line)
    assert (answer.status, answer.errors) == (0, [])
    clean, _, exact = measured(folder)
    if name == "cut":
        assert exact["correct"] == clean["correct"] > 0


@pytest.mark.parametrize("name", ["normed", "locked"])
def test_may_be_one_that_cannot_be_copied(name: str, folder: Path) -> None:
    network = make(f"others_factory:{name}")
    check_outputs(network, (1, 8, 8), 10)
    with pytest.raises(RequestError, match=r"^model.factory: others_factory:shared cannot be copied; name a"):
        make("others_factory:shared")


def test_a_factory_that_fails_is_named(folder: Path) -> None:
    with pytest.raises(
        RequestError, match=r"^model.factory: others_factory:broken raised KeyError: 'weights'"
    ):
        make("others_factory:broken")


def test_weights_that_are_no_numbers_are_refused(folder: Path) -> None:
    with pytest.raises(
        RequestError,
        match=r"others_factory:spoilt has non-finite weights: linear.bias: 1 of 10 values",
    ):
        make("others_factory:spoilt")


@pytest.mark.parametrize("name", ["always", "attacked"])
def test_outputs_that_are_no_numbers_are_an_error(name: str, ask: Ask, folder: Path) -> None:
    """Of images as they are, and of those that only an attack makes: no row holds a figure of them."""
    answer = ask("attack", f"model.factory=others_factory:{name}_nan", *LINE, "attack.steps=3")
    assert answer.status == 1
    assert "outputs are NaN or infinite" in answer.errors[-1]
    assert not list(folder.glob("runs/attack/*/result.json"))


def test_a_class_that_changes_elsewhere_is_another_network(folder: Path) -> None:
    before = digest("others_factory:views", make("others_factory:views"))
    assert digest("others_factory:views", make("others_factory:views")) == before
    (folder / "others_nets.py").write_text(NETS.replace("return self.linear", "return -self.linear"))
    assert digest("others_factory:views", make("others_factory:views")) != before


def test_a_network_elsewhere_is_not_touched(folder: Path) -> None:
    (folder / "others_one.py").write_text("import others_nets\nnetwork = others_nets.Views()\n")
    theirs = __import__("others_one").network
    ours = make("others_one:network")
    torch.nn.init.zeros_(ours.linear.weight)
    assert theirs.linear.weight.abs().sum() > 0
    sys.modules.pop("others_one")


ODD = """
import sys

network = 3

def exits():
    sys.exit("bye")

def needs(argument):
    pass

def several_lines():
    raise ValueError("first\\nsecond \\x1b[31m")

def generator_exit():
    raise GeneratorExit

def nothing():
    pass

def made(*arguments):
    return [1]
"""


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("sys:exit", "sys:exit raised SystemExit"),
        ("os:_exit_now", "os has no '_exit_now', "),
        ("os:getcwd", "os:getcwd gives a str, expected a torch.nn.Module"),
        ("odd_nets:network", "odd_nets:network is a int, expected what makes a network"),
        ("odd_nets:exits", "odd_nets:exits raised SystemExit: bye"),
        ("odd_nets:needs", "odd_nets:needs raised TypeError: needs() missing 1 required positional argument"),
        ("odd_nets:several_lines", "odd_nets:several_lines raised ValueError: first second \\x1b[31m"),
        ("odd_nets:generator_exit", "odd_nets:generator_exit raised GeneratorExit"),
        ("odd_nets:nothing", "odd_nets:nothing gives a NoneType, expected a torch.nn.Module"),
        ("odd_nets:made", "odd_nets:made gives a list, expected a torch.nn.Module"),
        ("odd_nets:mad", "odd_nets has no 'mad', did you mean 'made'?"),
        ("odd_exits:network", "odd_exits cannot be imported (SystemExit: on import)"),
        ("odd_broken:network", "odd_broken cannot be imported (SyntaxError: "),
        (
            "odd_absent:network",
            "odd_absent cannot be imported (ModuleNotFoundError: No module named",
        ),
        (".relative:network", ".relative cannot be imported (TypeError: "),
        ("torch.nn:Linear", "torch.nn:Linear raised TypeError: "),
    ],
)
def test_what_makes_no_network_is_one_line_and_leaves_nothing(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, said: str
) -> None:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "odd_nets.py").write_text(ODD)
    (folder / "odd_exits.py").write_text("import sys; sys.exit('on import')")
    (folder / "odd_broken.py").write_text("network = (")
    monkeypatch.syspath_prepend(folder)
    answer = ask("attack", f"model.factory={spec}", *LINE)
    assert answer.status == 2
    (error,) = answer.errors
    assert error.startswith(f"sstune: model.factory: {said}")
    assert len(error) <= 200
    assert [path.name for path in tmp_path.iterdir()] == ["code"]
