"""An attack that another package registers is asked for, checked, run and reported as ours are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from outside import NEAREST_MEAN, answers_with
from sklearn.datasets import load_digits

from sstune.catalogue import options
from sstune.quantities import parse_eps
from sstune.schema import (
    AttackConfig,
    PgdConfig,
    RuleConfig,
    Traits,
    register_attack,
    register_option,
)
from sstune.schema.options import ADDED, AddedOption

PACKAGE = """
from dataclasses import dataclass

from sstune.attacks import ATTACKS, Attack, AttackResult
from sstune.schema import AttackConfig, Effort, Norm, Traits, register_attack, register_option


@dataclass
class BrightnessConfig(AttackConfig):
    levels: int = 2


@ATTACKS.register("brightness")
class Brightness(Attack):
    def __call__(self, stage, model, batch, objective, eps):
        result, effort = batch.images.clone(), torch.full((len(batch),), -1)
        for query in range(2 * self.config.levels):
            shift = (1, -1)[query % 2] * eps * (query // 2 + 1) / self.config.levels
            images = (batch.images + shift).clamp(0, 1)
            with torch.no_grad():
                found = objective.is_adversarial(model(images)) & (effort < 0)
            result[found], effort[found] = images[found], query + 1
        return AttackResult(result, effort)


register_attack(
    "brightness",
    Traits(BrightnessConfig, uses_gradient=False, norms=(Norm.Linf,), effort=Effort.queries),
)
values = {"eps": ["16/255", "64/255"], "gradient": ["none"]}
register_option("attack", "brightness", BrightnessConfig, values)

"""
ASKED = "attack attack=brightness model.factory=their_package:nearest device=cpu threads=1 attack.n=200"


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The program's directory, and what it answered to each line: exit status, output, errors."""
    lines = {
        "run": f"{ASKED} attack.levels=3",
        "again": f"{ASKED} attack.levels=3",
        "report": "report runs --out results",
        "help": "--help",
        "gradient": f"{ASKED} attack.gradient=[rule]",
        "norm": f"{ASKED} attack.norm=L2",
        "eot": f"{ASKED} attack.eot=2",
        "key": f"{ASKED} attack.level=3",
        "name": "attack attack=brightnes",
    }
    folder = tmp_path_factory.mktemp("third_party")
    return folder, answers_with(NEAREST_MEAN + PACKAGE, lines, folder)


def test_is_run_and_found_again(answers: tuple[Path, dict[str, Any]]) -> None:
    folder, found = answers
    assert (found["run"][0], found["run"][2]) == (0, [])
    assert found["again"][1].rstrip().endswith("done already")
    (path,) = folder.glob("runs/attack/brightness-*/result.json")
    row = json.loads(path.read_text())
    assert row["config"]["attack"]["levels"] == 3
    assert {entry["gradient"] for entry in row["measurements"]} == {None}
    correct = {entry["eps"]: entry["correct"] for entry in row["measurements"]}
    assert correct["64/255"] < correct["16/255"] < correct[None]


def test_counts_are_those_of_the_attack_written_out(answers: tuple[Path, dict[str, Any]]) -> None:
    """On all digits, of which about the same share is left as of the test images that the run attacks."""
    folder, _ = answers
    (path,) = folder.glob("runs/attack/brightness-*/result.json")
    images, labels = load_digits(return_X_y=True)
    pixels, classes = torch.tensor(images).float() / 16, torch.tensor(labels)
    means = torch.stack([pixels[classes == digit].mean(0) for digit in range(10)])

    def right(shift: float) -> torch.Tensor:
        moved = (pixels + shift).clamp(0, 1)
        return ((moved[:, None] - means).square().sum(2).argmin(1)) == classes

    for entry in json.loads(path.read_text())["measurements"]:
        eps = parse_eps(entry["eps"]) if entry["eps"] else 0.0
        left = right(0.0)
        for level in (1, 2, 3):
            left = left & right(eps * level / 3) & right(-eps * level / 3)
        assert entry["correct"] / entry["n"] == pytest.approx(float(left.double().mean()), abs=0.1)


def test_is_reported(answers: tuple[Path, dict[str, Any]]) -> None:
    folder, found = answers
    assert found["report"][0] == 0
    table = pd.read_csv(folder / "results" / "table.csv")
    assert list(table["attack"].unique()) == ["clean", "brightness"]
    assert (folder / "results" / "queries.png").exists()  # by its unit of effort
    assert not (folder / "results" / "steps.png").exists()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("gradient", "attack.gradient: brightness uses no gradient, remove this key"),
        ("norm", "attack.norm: brightness supports Linf only"),
        (
            "eot",
            "attack.eot: is for fgsm, mifgsm, pgd, finite_difference, mainstay, hag, hag_sign, sdha, apgd, "
            "apgd_t and audit, not for brightness",
        ),
        ("key", "attack.level: no such key, did you mean 'attack.levels'?"),
        ("name", "attack: there is no 'brightnes', did you mean 'brightness'?"),
    ],
)
def test_a_wrong_request_is_refused(answers: tuple[Path, dict[str, Any]], line: str, problem: str) -> None:
    status, _, errors = answers[1][line]
    assert (status, errors) == (2, [f"sstune: {problem}"])


def test_is_listed(answers: tuple[Path, dict[str, Any]]) -> None:
    assert " brightness " in answers[1]["help"][1]


def test_names_that_are_taken_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="taken"):
        register_attack("pgd", Traits(PgdConfig))
    with pytest.raises(ValueError, match="already"):
        register_option("attack", "pgd", PgdConfig)
    with pytest.raises(ValueError, match="not a config group"):
        register_option("atack", "mine", AttackConfig)
    with pytest.raises(TypeError, match="not a dataclass"):
        register_option("attack", "mine", int)
    monkeypatch.setitem(ADDED["rule"], "usf", AddedOption(RuleConfig, {"name": "usf"}))
    with pytest.raises(ValueError, match="usf exists already"):
        options("rule")
