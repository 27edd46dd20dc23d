"""Every preset opens with the lines that reproduce it: they parse, and in small they run."""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sstune.arguments import read
from sstune.backbones.cifar_resnet import CifarResNet
from sstune.catalogue import CONF, options
from sstune.composition import cells, compose
from sstune.schema import COMMANDS
from sstune.validation import validate

Ask = Callable[..., Any]


def commands(experiment: str) -> list[list[str]]:
    """The command lines with which a preset opens, as words."""
    package, *rest = (CONF / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    assert package == "# @package _global_"
    header = []
    for line in rest:
        if not line.startswith("# ") and line != "#":
            break
        header.append(line.removeprefix("#").strip())
    text = "\n".join(header).split("\n\n")[0].replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines()]


@pytest.fixture
def placeholders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], None]:
    """Make every path that a command line names, in an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def make(words: list[str]) -> None:
        for word in words:
            key, _, value = word.partition("=")
            if key in ("init_from", "dataset.root", "audit.surrogate"):
                path = Path(value.replace("*", "finished"))
                if "*" in value:
                    path.mkdir(parents=True)
                    (path / "result.json").touch()
                else:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.touch()

    return make


@pytest.mark.parametrize("experiment", options("experiment"))
class TestEveryPreset:
    def test_opens_with_its_command_lines_which_compose(
        self, placeholders: Callable[[list[str]], None], experiment: str
    ) -> None:
        lines = commands(experiment)
        assert lines
        for program, command, *words in lines:
            assert program == "sstune"
            assert command in COMMANDS
            assert f"experiment={experiment}" in words
            placeholders(words)
            found = cells(command, read(words)[1])
            assert len(found) == 1 or "-m" in words
            assert len({cell.request.config.out for cell in found}) == 1

    def test_says_what_it_costs_and_what_to_expect(self, experiment: str) -> None:
        text = (CONF / "experiment" / f"{experiment}.yaml").read_text()
        assert re.search(r"^# (.*\. )?Cost: ", text, re.MULTILINE)
        assert "Expect: " in text

    @pytest.mark.parametrize("command", COMMANDS)
    def test_composes_and_validates_in_every_command(self, experiment: str, command: str) -> None:
        words = [f"experiment={experiment}"]
        text = (CONF / "experiment" / f"{experiment}.yaml").read_text()
        if re.search(r"/dataset: (folder|imagenet)$|^  - cifar10_jpeg$", text, re.MULTILINE):
            words.append("dataset.root=.")
        config = compose(command, words)
        validate(config)
        assert config.out != compose(command).out  # its runs and rows lie together, apart from others


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of 8x8 RGB images of two classes."""
    noise = np.random.default_rng(0)
    for split, n in (("train", 48), ("test", 12)):
        for label in (0, 1):
            folder = tmp_path / "images" / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = noise.integers(0, 128, (8, 8, 3)) + 100 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "images"


def test_cifar10_jpeg_runs_in_small_from_its_own_lines_to_the_tables(
    ask: Ask, images: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    state = {f"module.{name}": value for name, value in CifarResNet(3, 3, 10).state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "published.th")
    (_, *finetune), (_, *attack) = commands("cifar10_jpeg")
    smaller = {
        "dataset.root": "images",
        "rule": "bp,usf",
        "rule.scale": "weight_rms",
        "attack": "fgsm",
        "init_from": "published.th",
    }

    def small(words: list[str]) -> list[str]:
        kept = []
        for word in words:
            key, equals, value = word.partition("=")
            replaced = equals and key in smaller and "*" not in value
            kept.append(f"{key}={smaller[key]}" if replaced else word)
        return [
            *kept,
            "threads=1",
            "device=cpu",
            f"dataset.cache={tmp_path / 'cache'}",
            "dataset.val_fraction=0.2",
        ]

    assert ask(*small(finetune), "batch_size=16").status == 0
    answer = ask(*small(attack), "attack.n=8")
    assert answer.status == 0, answer.err
    rows = [json.loads(path.read_text()) for path in tmp_path.glob("runs/cifar10-jpeg/*/*/result.json")]
    named = sorted((row["command"], row["config"]["rule"]["name"]) for row in rows)
    assert named == [("attack", "bp"), ("attack", "usf"), ("finetune", "bp"), ("finetune", "usf")]
    assert {row["lineage"][0]["file"] for row in rows} == {"published.th"}
    assert {row["config"]["dataset"]["label"] for row in rows} == {"cifar10-jpeg"}

    report = ask("report", "runs/cifar10-jpeg", "--out", "results/small")
    assert report.status == 0, report.err
    with (tmp_path / "results" / "small" / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    counted = [entry for row in rows for entry in row["measurements"] if entry["split"] == "test"]
    assert 0 < len(table) <= len(counted)
    assert {line["rule"] for line in table} == {"bp", "usf"}
    assert str(tmp_path) not in (tmp_path / "results" / "small" / "rows.jsonl").read_text()
