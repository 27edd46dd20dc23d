"""Every command in the README is run here, and its example of a new rule as well."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from sstune.catalogue import CONF
from sstune.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def prompts() -> list[str]:
    """What follows a ``$`` in the console blocks."""
    return [
        line.removeprefix("$ ")
        for block in blocks("console")
        for line in block.splitlines()
        if line[:1] == "$"
    ]


def inline() -> list[str]:
    return re.findall(r"`((?:sstune|make|python) [^`|]+)`", README)


def targets() -> set[str]:
    return set(
        re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    )


def test_every_command_has_its_test() -> None:
    """A command of a kind that no test below runs would stand in the README untested."""
    kinds = [
        r"make [a-z-]+( SHARED=FOLDER)?",
        r"sstune (train|finetune|attack|report|retrieve) .*|sstune --help",
    ]
    kinds.append(r"python scripts/bench\.py (step|train --data \S+)")  # tests/scripts/test_bench.py
    for command in [*prompts(), *inline()]:
        assert any(re.fullmatch(kind, command) for kind in kinds), command


def test_make_targets_exist() -> None:
    named = {command.split()[1] for command in [*prompts(), *inline()] if command.startswith("make ")}
    assert {"quickstart", "test", "reproduce"} <= named <= targets()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_quickstart_runs_the_lines_shown() -> None:
    plan = subprocess.run(
        ["make", "--dry-run", "quickstart"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    recipe = re.findall(r"^\S*/(sstune .*)$", plan.stdout, flags=re.MULTILINE)
    assert recipe == [command for command in prompts() if command.startswith("sstune ")]


def test_the_four_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The README's lines as they stand; then once more, which must train nothing."""
    monkeypatch.chdir(tmp_path)
    lines = [command for command in prompts() if command.startswith("sstune ")]
    for line in lines:
        assert main(shlex.split(line)[1:]) == 0, line
    table = capsys.readouterr().out
    for rule in ("bp", "usf", "frsf", "brsf"):
        assert re.search(rf"^{rule}\b.*\d", table, flags=re.MULTILINE)
    written = {path.name for path in (tmp_path / "results/quickstart").iterdir()}
    assert {"table.csv", "wide.csv", "table.tex", "accuracy.png", "accuracy.svg", "rows.jsonl"} <= written

    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.pt")}
    assert len(finished) == 5
    for line in lines:
        assert main(shlex.split(line)[1:]) == 0
    assert finished == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.pt")}

    again = ["report", "results/quickstart/rows.jsonl", "--out", "again"]
    assert main(again) == 0
    for name in ("table.csv", "table.tex", "accuracy.svg"):
        assert (tmp_path / "again" / name).read_bytes() == (
            tmp_path / "results/quickstart" / name
        ).read_bytes()


@pytest.mark.parametrize("command", ["sstune --help", "sstune finetune --cfg job"])
def test_questions(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command in inline()
    assert main(shlex.split(command)[1:]) == 0
    assert "brsf" in capsys.readouterr().out or "rule:" in command or "cfg" in command


def test_the_example_of_a_new_rule() -> None:
    """The class and the YAML file shown are all that a rule takes."""
    (code,) = blocks("python")
    (config,) = blocks("yaml")
    namespace: dict[str, object] = {}
    exec(code, namespace)
    from sstune.rules import FEEDBACKS, convert, feedback_layers
    from sstune.schema import RuleConfig

    try:
        values = yaml.safe_load(config)
        assert values["name"] in FEEDBACKS
        assert values["defaults"] == yaml.safe_load((CONF / "rule/usf.yaml").read_text())["defaults"]
        layer = torch.nn.Sequential(torch.nn.Linear(6, 4))
        convert(layer, RuleConfig(name=values["name"]), seed=0)
        (converted,) = feedback_layers(layer).values()
        weight = converted.weight.detach()
        rms = weight.square().mean().sqrt()
        expected = rms * weight.sign() * (weight.abs() > weight.abs().mean())
        torch.testing.assert_close(converted.feedback.matrix(weight), expected)
    finally:
        FEEDBACKS._entries.pop("ternary", None)


def test_it_stays_short() -> None:
    assert len(README.splitlines()) < 200
