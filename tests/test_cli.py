from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import processes
import pytest
import yaml

import sstune
from sstune.catalogue import options
from sstune.composition import cells, compose, restore
from sstune.schema import COMMANDS, GROUPS

Ask = Callable[..., Any]
ROOT = Path(sstune.__file__).parents[1]


class TestRequests:
    def test_without_a_command_the_help_is_shown(self, ask: Ask) -> None:
        answer = ask()
        assert answer.status == 2
        assert answer.out.startswith("sstune ")

    @pytest.mark.parametrize("how", ["-v", "SSTUNE_DEBUG"])
    @pytest.mark.parametrize(
        ("line", "status"), [("train epoch=3", 2), ("train out=file", 2), ("train out=/proc/none", 1)]
    )
    def test_a_traceback_is_shown_when_asked_for(
        self, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, line: str, status: int
    ) -> None:
        (tmp_path / "file").write_text("")
        plain = ask(*line.split())
        if how == "SSTUNE_DEBUG":
            monkeypatch.setenv("SSTUNE_DEBUG", "1")
        verbose = ask(*line.split(), *(["-v"] if how == "-v" else []))
        assert plain.status == verbose.status == status
        assert len(plain.errors) == 1
        assert verbose.errors[0].startswith("Traceback")
        assert verbose.errors[-1] == plain.errors[0]


class TestHelp:
    @pytest.mark.parametrize("line", ["--help", "-h", "help", "train --help", "attack -m -h"])
    def test_lists_commands_groups_options_and_examples(self, ask: Ask, line: str) -> None:
        answer = ask(*line.split())
        assert answer.status == 0
        assert answer.err == ""
        for command in [*COMMANDS, "report", "retrieve"]:
            assert f"\n  {command} " in answer.out
        for group in [*GROUPS, "experiment"]:
            assert f" {group}= {' | '.join(options(group))}" in " ".join(answer.out.split())
        assert "\n  -m " in answer.out
        assert "\n  sstune finetune -m rule=bp,usf" in answer.out
        assert max(map(len, answer.out.splitlines())) <= 110

    def test_its_examples_are_right(self, ask: Ask, tmp_path: Path) -> None:
        (tmp_path / "runs" / "finetune" / "RUN").mkdir(parents=True)
        examples = ask("--help").out.split("examples:\n")[1]
        lines = [line.split("   ")[0].split() for line in examples.splitlines()]
        commands = set()
        for program, command, *words in lines:
            assert program == "sstune"
            if command in COMMANDS:
                assert cells(command, [word for word in words if "=" in word])
            commands.add(command)
        assert commands == {*COMMANDS, "report", "retrieve"}

    def test_version(self, ask: Ask) -> None:
        assert ask("--version") == (0, f"sstune {sstune.__version__}\n", "")

    def test_questions_and_wrong_requests_are_answered_without_torch(self, tmp_path: Path) -> None:
        program = (
            "import sys; from sstune.cli import main\n"
            "lines = ['--help', '--version', 'train --help', 'finetune --cfg job', 'train epochs=0', 'x',\n"
            "         'attack -m seed=0,x', 'retrieve --help', 'retrieve x']\n"
            "answers = [main(line.split()) for line in lines]\n"
            "heavy = {'torch', 'torchvision', 'timm', 'pandas', 'sklearn', 'torchattacks'}\n"
            "print(answers, heavy & set(sys.modules))"
        )
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        answer = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert answer.stdout.splitlines()[-1] == "[0, 0, 0, 0, 2, 2, 2, 0, 2] set()"
        assert answer.stderr.count("\n") == 4
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("command", COMMANDS)
    def test_cfg_job_prints_the_configuration(self, ask: Ask, tmp_path: Path, command: str) -> None:
        answer = ask(command, "--cfg", "job", "rule=brsf", "epochs=3")
        assert answer.status == 0
        assert answer.err == ""
        assert restore(yaml.safe_load(answer.out)) == compose(command, ["rule=brsf", "epochs=3"])
        assert list(tmp_path.iterdir()) == []

    def test_cfg_job_shows_no_configuration_that_a_run_would_refuse(self, ask: Ask) -> None:
        answer = ask("train", "--cfg", "job", "epochs=0")
        assert (answer.status, answer.out) == (2, "")
        assert answer.errors == ["sstune: epochs: 0 is out of range, expected >= 1"]


class TestSweeps:
    def test_one_bad_cell_stops_it_before_any_is_run(
        self, ask: Ask, tmp_path: Path, small: list[str]
    ) -> None:
        answer = ask("train", "-m", *small, "batch_size=64,0")
        assert answer.status == 2
        (error,) = answer.errors
        assert error.startswith("sstune: batch_size: 0 is out of range, expected >= 1 (in the cell ")
        assert "batch_size=0" in error.split("(in the cell ")[1]
        assert list(tmp_path.iterdir()) == []

    def test_a_failing_cell_is_written_down_and_the_others_are_run(
        self, ask: Ask, tmp_path: Path, small: list[str]
    ) -> None:
        line = ["train", "-m", *small, "optimizer.lr=1e30,0.05"]
        answer = ask(*line)
        assert answer.status == 1
        diverged, unfinished = answer.errors
        assert diverged.startswith("sstune: failed: FloatingPointError")
        assert unfinished == "sstune: 1 cell is not done; run the same command to finish it"
        found = {}
        for run in (tmp_path / "runs" / "train").iterdir():
            lr = yaml.safe_load((run / "config.yaml").read_text())["optimizer"]["lr"]
            found[lr] = {path.name for path in run.iterdir()} & {"failure.json", "result.json"}
        assert found == {1e30: {"failure.json"}, 0.05: {"result.json"}}

        again = ask(*line)
        assert again.status == 1
        assert again.out.startswith("2 cells, 1 done already\n")

    def test_cells_are_the_runs_of_the_single_lines_and_leave_nothing_else(
        self, ask: Ask, tmp_path: Path, small: list[str]
    ) -> None:
        assert ask("train", "-m", *small, "seed=0,1").status == 0
        assert ask("train", *small, "seed=1").out.endswith(": done already\n")
        assert [path.name for path in tmp_path.iterdir()] == ["runs"]
        seeds = sorted(path.name.split("-")[3] for path in (tmp_path / "runs" / "train").iterdir())
        assert seeds == ["s0", "s1"]
        assert "multirun.yaml" not in [
            path.name for path in tmp_path.rglob("*") if ".sweep" not in path.parts
        ]

    def test_a_signal_stops_it_with_the_rest_unrun(self, tmp_path: Path, small: list[str]) -> None:
        line = ["train", "-m", *small, "epochs=1000", "seed=0,1"]
        process = processes.start(line, tmp_path, tmp_path / "output")
        processes.until(lambda: any(tmp_path.glob("runs/train/*/checkpoint.pt")), process)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)
        assert processes.wait(process) == 143
        assert len(list((tmp_path / "runs" / "train").iterdir())) == 1


class TestGlobs:
    def test_stand_for_the_finished_runs(self, ask: Ask, tmp_path: Path, small: list[str]) -> None:
        for rule in ("bp", "usf"):
            assert ask("train", *small, f"rule={rule}").status == 0
        (tmp_path / "runs" / "train" / "unfinished").mkdir()
        attack = [
            "attack",
            "init_from=runs/train/*",
            "attack=fgsm",
            "attack.eps=[8/255]",
            "attack.n=8",
            "threads=1",
        ]
        several = ask(*attack)
        assert several.status == 2
        (error,) = several.errors
        assert error.startswith("sstune: init_from: several values need -m: sstune attack -m init_from=runs/")
        assert ask(attack[0], "-m", *attack[1:]).status == 0
        rows = [json.loads(path.read_text()) for path in (tmp_path / "runs" / "attack").glob("*/result.json")]
        assert sorted(row["config"]["rule"]["name"] for row in rows) == ["bp", "usf"]
        single = ask("attack", "init_from=runs/train/*-usf-*", *attack[2:])
        assert single.out.endswith(": done already\n")
