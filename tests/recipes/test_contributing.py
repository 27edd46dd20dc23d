"""The code of CONTRIBUTING.md is a package: its rule, attack, dataset and task run from command lines."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from outside import ROOT, answers_with
from sklearn.datasets import load_digits

from sstune.packing import unpack_values
from sstune.statistics import Z

DATA = "dataset=digit_traits task=multilabel backbone=mlp backbone.hidden=[32] threads=1 device=cpu"
TRAIN = f"train {DATA} epochs=3 batch_size=50 optimizer.lr=0.1"
FINETUNE = f"finetune {DATA} rule=thresholded epochs=1 batch_size=50 optimizer.lr=0.01"
ATTACK = "threads=1 device=cpu init_from=%s attack.n=100"
LINES = {
    "train": TRAIN,
    "again": TRAIN,
    "finetune": f"{FINETUNE} init_from=runs/train/*",
    "pgd": f"attack attack=pgd attack.eps=[16/255] attack.save_images=3 {ATTACK}" % "runs/finetune/*",
    "brightness": f"attack attack=brightness {ATTACK}" % "runs/finetune/*",
    "square": f"attack attack=square {ATTACK}" % "runs/finetune/*",
    "audit": f"attack attack=audit {ATTACK}" % "runs/finetune/*",
    "report": "report runs --out results",
    "help": "--help",
}


def package() -> str:
    """Every Python block of the page, in order."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return "\n\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The working directory, and status, output and error lines of each command."""
    folder = tmp_path_factory.mktemp("recipes")
    return folder, answers_with(package(), LINES, folder)


def row_of(folder: Path, pattern: str) -> Any:
    (path,) = folder.glob(f"runs/{pattern}/result.json")
    return json.loads(path.read_text())


def test_everything_runs(answers: tuple[Path, dict[str, Any]]) -> None:
    _, found = answers
    for name in ("train", "again", "finetune", "pgd", "brightness", "report", "help"):
        assert (found[name][0], found[name][2]) == (0, []), name
    assert found["again"][1].rstrip().endswith("done already")
    for option in ("thresholded", "brightness", "digit_traits", "multilabel"):
        assert f" {option} " in f" {found['help'][1]} ".replace("\n", " ")


def test_the_rows_hold_the_metric_of_each_sample(answers: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = answers
    val, test = row_of(folder, "train/*")["measurements"]
    assert (val["metric"], test["n"], "correct" in test) == ("label accuracy", 397, False)
    assert test["value"] > 0.8  # guessing the more frequent answer is right in 0.53
    assert test["value"] == pytest.approx(sum(test["more"].values()) / 3)
    with next(folder.glob("runs/train/*/history.csv")).open() as file:
        history = list(csv.DictReader(file))
    assert max(float(line["val_label accuracy"]) for line in history) == val["value"]
    assert float(history[-1]["train_label accuracy"]) > float(history[0]["train_label accuracy"])


def test_the_figures_are_those_of_the_weights(answers: tuple[Path, dict[str, Any]]) -> None:
    """By plain torch, from the file of the weights."""
    folder, _ = answers
    (run,) = folder.glob("runs/finetune/*")
    state = torch.load(run / "model.pt", weights_only=True)["state_dict"]
    pixels, digits = load_digits(return_X_y=True)
    images = (torch.tensor(pixels * 255 / 16).byte()[-397:].float() / 255 - 0.3) / 0.35
    first, second = (value for name, value in state.items() if name.endswith("weight"))
    biases = [value for name, value in state.items() if name.endswith("bias")]
    outputs = (images @ first.T + biases[0]).relu() @ second.T + biases[1]
    digit = torch.tensor(digits)[-397:]
    labels = torch.stack([digit % 2 == 0, digit > 4, torch.isin(digit, torch.tensor([2, 3, 5, 7]))], 1)
    right = ((outputs > 0) == labels).double()
    test = row_of(folder, "finetune/*")["measurements"][1]
    assert test["value"] == pytest.approx(float(right.mean()), abs=1e-9)
    assert list(test["more"].values()) == pytest.approx(right.mean(0).tolist(), abs=1e-9)


def test_both_gradients_are_attacked(answers: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = answers
    clean, rule, exact = row_of(folder, "attack/pgd-*")["measurements"]
    assert (rule["gradient"], exact["gradient"]) == ("rule", "exact")
    assert exact["value"] < rule["value"] < clean["value"]
    for entry in (clean, rule, exact):
        assert unpack_values(entry["values"], 100).mean() == pytest.approx(entry["value"], abs=1e-6)


def test_what_is_not_for_the_task_is_refused(answers: tuple[Path, dict[str, Any]]) -> None:
    for name, able in {"square": "classification", "audit": "classification and hashing"}.items():
        line = f"sstune: attack: {name} supports {able}, not task=multilabel"
        assert answers[1][name] == [2, "", [line]]


def test_the_table_names_the_metric(answers: tuple[Path, dict[str, Any]]) -> None:
    folder, found = answers
    table = pd.read_csv(folder / "results" / "table.csv")
    assert set(table["metric"]) == {"label accuracy"}
    assert set(table["attack"]) == {"clean", "pgd", "brightness"}
    pgd = table[(table["attack"] == "pgd") & (table["gradient"] == "exact")].iloc[0]
    values = unpack_values(row_of(folder, "attack/pgd-*")["measurements"][2]["values"], 100)
    half = Z * values.std(ddof=1) / 10
    assert pgd["mean"] == pytest.approx(values.mean(), abs=1e-6)
    assert (pgd["high"] - pgd["low"]) / 2 == pytest.approx(half, rel=0.1)  # of a bootstrap
    assert "label accuracy" in found["report"][1]
