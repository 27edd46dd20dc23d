from __future__ import annotations

import errno
import json
import os
import platform
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import processes
import pytest
import torch

from sstune.commands.run_once import prepare, run_once
from sstune.composition import compose
from sstune.interrupt import StopFlag, Stopped
from sstune.runs import Run
from sstune.schema import RequestError, RunConfig
from sstune.training import ALONE


def stamps(directory: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of modification of every file below a directory."""
    files = {path: path.stat() for path in directory.rglob("*") if path.is_file()}
    return {str(path): (stat.st_ino, stat.st_mtime_ns) for path, stat in files.items()}


def test_a_finished_run_answers_from_its_row(
    ask: Callable[..., Any], tmp_path: Path, small: list[str]
) -> None:
    first = ask("train", *small)
    before = stamps(tmp_path)
    second = ask("train", *small, "threads=2", "attack.n=3")  # neither makes another run
    assert (first.status, second.status) == (0, 0)
    (run,) = (tmp_path / "runs" / "train").iterdir()
    assert second.out == f"{run.relative_to(tmp_path)}: done already\n"
    assert second.err == ""
    assert stamps(tmp_path) == before


def test_force_runs_again_and_keeps_the_earlier_row(
    ask: Callable[..., Any], tmp_path: Path, small: list[str]
) -> None:
    assert ask("train", *small).status == 0
    (run,) = (tmp_path / "runs" / "train").iterdir()
    before = (run / "result.json").read_text()
    again = ask("train", *small, "force=true")
    assert again.status == 0
    assert "done already" not in again.out
    assert (run / "previous.result.json").read_text() == before
    old, new = json.loads(before), json.loads((run / "result.json").read_text())
    assert new["measurements"] == old["measurements"]
    assert new["seconds"] != old["seconds"]


def test_the_row_is_complete(trained: Path) -> None:
    row = json.loads((trained / "result.json").read_text())
    what = {"schema_version", "identity", "command", "config", "lineage", "datasets", "layers", "notes"}
    measured = {"n_classes", "measurements", "epoch", "seconds"}
    how = {"precision", "device", "threads", "deterministic", "versions", "git"}
    assert set(row) >= what | measured | how
    assert trained.name.endswith(row["identity"][:12])
    assert (row["command"], row["threads"], row["precision"]) == ("train", 1, "float32")
    model, capability = row["device"].removeprefix("cpu (").removesuffix(")").rsplit(", ", 1)
    assert capability == torch.backends.cpu.get_cpu_capability()
    if platform.machine() == "x86_64" and shutil.which("lscpu"):
        described = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
        assert re.search(rf"^Model name: +{re.escape(model)}$", described, re.MULTILINE)
    assert model
    assert row["n_classes"] == 10
    assert row["seconds"] > 0
    for entry in row["measurements"]:
        assert type(entry["n"]) is type(entry["correct"]) is int
        assert 0 <= entry["correct"] <= entry["n"] == row["datasets"][entry["split"]]["n"]
    assert all(len(split["digest"]) == 64 for split in row["datasets"].values())
    assert "root" not in json.dumps(row["config"])


def test_a_failure_is_shown_at_once_and_written_down(
    ask: Callable[..., Any], tmp_path: Path, small: list[str]
) -> None:
    answer = ask("train", *small, "optimizer.lr=1e30")
    assert answer.status == 1
    (error,) = answer.errors  # the loss has diverged: no traceback is needed to understand that
    assert error.startswith("sstune: failed: FloatingPointError: the training loss is nan")
    (run,) = (tmp_path / "runs" / "train").iterdir()
    failure = json.loads((run / "failure.json").read_text())
    assert failure["error"].startswith("FloatingPointError: the training loss is nan in epoch 1")
    assert "_train_epoch" in failure["traceback"]
    assert not (run / "result.json").exists()
    assert ask("finetune", *small, f"init_from={run}").errors == [
        f"sstune: init_from: {run} is not a finished train or finetune run"
    ]


def test_two_processes_with_one_configuration(tmp_path: Path, small: list[str]) -> None:
    line = ["train", *small, "epochs=1000"]
    first = processes.start(line, tmp_path, tmp_path / "first")
    processes.until(lambda: any(tmp_path.glob("runs/train/*/config.yaml")), first)
    second = processes.start(line, tmp_path, tmp_path / "second")
    assert processes.wait(second) == 1
    (run,) = (tmp_path / "runs" / "train").iterdir()
    said = (tmp_path / "second").read_text()
    assert said.startswith(f"sstune: {run.relative_to(tmp_path)} is being run by process {first.pid} on ")
    assert said.count("\n") == 1
    assert first.is_alive()
    first.kill()
    assert processes.wait(first) == -signal.SIGKILL


def test_a_signal_in_the_last_step_ends_a_sweep_although_the_run_is_done(
    tmp_path: Path, complete: Callable[..., RunConfig]
) -> None:
    run = Run(complete("train", out=str(tmp_path), device="cpu"), [], None)

    def work(run: Run, device: torch.device, stop: StopFlag) -> dict[str, Any]:
        signal.raise_signal(signal.SIGTERM)
        return {"measurements": []}

    with pytest.raises(Stopped) as stopped:
        run_once(run, work)
    assert stopped.value.code == 143
    assert run.result() is not None


def test_who_waits_for_another_process_takes_its_result(tmp_path: Path, small: list[str]) -> None:
    line = ["train", *small, "epochs=5", "out=runs"]
    other = processes.start(line, tmp_path, tmp_path / "other")
    processes.until(lambda: any(tmp_path.glob("runs/train/*/config.yaml")), other)
    run = Run(compose("train", [*line[1:-1], f"out={tmp_path / 'runs'}"]), [], None)

    def work(run: Run, device: torch.device, stop: StopFlag) -> dict[str, Any]:
        raise AssertionError("the other one does it")

    assert run.result() is None
    row = run_once(run, work, wait=True)
    assert row == run.result()
    assert row["epochs_trained"] == 5
    assert processes.wait(other) == 0


@pytest.mark.parametrize("out", ["file", "file/deep"])
def test_an_impossible_place_is_a_wrong_request(
    ask: Callable[..., Any], tmp_path: Path, small: list[str], out: str
) -> None:
    (tmp_path / "file").write_text("mine")
    answer = ask("train", *small, f"out={out}")
    assert (answer.status, answer.errors) == (2, ["sstune: out: file is a file, expected a directory"])
    assert (tmp_path / "file").read_text() == "mine"


def test_a_damaged_result_is_made_anew_by_force(
    ask: Callable[..., Any], tmp_path: Path, small: list[str]
) -> None:
    assert ask("train", *small).status == 0
    (path,) = (tmp_path / "runs" / "train").glob("*/result.json")
    path.write_text(path.read_text()[:100])
    answer = ask("train", *small)
    assert (answer.status, len(answer.errors)) == (2, 1)
    assert f"{path.relative_to(tmp_path)}: not JSON (" in answer.err
    assert ask("train", *small, "force=true").status == 0
    assert ask("train", *small).out.endswith(": done already\n")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_disk_full_at_any_write_is_one_line_and_the_same_line_ends_at_the_same_row(
    ask: Callable[..., Any], tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    real, line = getattr(os, step), ["train", *small, "backbone=mlp", "rule=usf"]
    written, full = 0, -1

    def write(*arguments: Any) -> None:
        nonlocal written
        written += 1
        if written == full:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*arguments)

    monkeypatch.setattr(os, step, write)
    assert ask(*line, "out=whole").status == 0
    (whole,) = (tmp_path / "whole" / "train").iterdir()
    for number in range(1, written + 1):
        written, full = 0, number
        answer = ask(*line, f"out=out{number}")
        assert (answer.status, len(answer.errors)) == (1, 1)
        assert re.match(rf"sstune: no space left on /\S* while writing out{number}/train/\S+", answer.err)
        full = -1
        assert ask(*line, f"out=out{number}").status == 0
        (run,) = (tmp_path / f"out{number}" / "train").iterdir()
        assert (run / "model.pt").read_bytes() == (whole / "model.pt").read_bytes()
        assert sorted(os.listdir(run)) == sorted(os.listdir(whole))


@pytest.mark.parametrize("deterministic", [True, False])
def test_deterministic_algorithms_are_used_when_asked_for(
    tmp_path: Path, complete: Callable[..., RunConfig], deterministic: bool
) -> None:
    run = Run(complete("train", out=str(tmp_path), device="cpu", deterministic=deterministic), [], None)

    def work(run: Run, device: torch.device, stop: StopFlag) -> dict[str, Any]:
        return {
            "found": (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark),
            "products": torch.backends.fp32_precision,
        }

    try:
        row = run_once(run, work)
    finally:
        torch.use_deterministic_algorithms(False)
    assert row["found"] == [deterministic, False]  # only training looks for the fastest algorithm
    assert row["products"] == "ieee"
    assert row["deterministic"] is True  # the CPU's are, always


class TestDevice:
    def test_auto_and_cpu(self, complete: Callable[..., RunConfig]) -> None:
        assert prepare(complete("train", device="cpu"), ALONE) == torch.device("cpu")
        found = "cuda" if torch.cuda.is_available() else "cpu"
        assert prepare(complete("train", device="auto"), ALONE).type == found

    @pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
    @pytest.mark.parametrize("name", ["cuda", "cuda:1"])
    def test_an_absent_gpu_is_a_wrong_request(self, name: str, complete: Callable[..., RunConfig]) -> None:
        with pytest.raises(RequestError, match=f"device: {name} is not available, use"):
            prepare(complete("train", device=name), ALONE)

    def test_tf32_on_the_cpu_is_a_wrong_request(self, ask: Callable[..., Any], small: list[str]) -> None:
        answer = ask("train", *small, "precision=tf32")
        assert answer.status == 2
        assert answer.errors == ["sstune: precision: tf32 needs a CUDA device, use float32 or bf16"]
        assert answer.out == ""


class TestRefusedByTheNetwork:
    @pytest.mark.parametrize(
        ("override", "said"),
        [
            ("optimizer.freeze=[hed]", "optimizer.freeze: 'hed' matches no module, did you mean 'head'?"),
            ("optimizer.freeze=['*']", "optimizer.freeze: ['*'] leaves nothing to train"),
            (
                "optimizer.lr_factors={stam:2}",
                "optimizer.lr_factors: 'stam' matches no module, did you mean 'stem'?",
            ),
            (
                "compile=default",
                "compile: needs a C++ compiler for the CPU; there is no no-such-compiler ($CXX)",
            ),
        ],
    )
    def test_is_one_line(
        self,
        ask: Callable[..., Any],
        small: list[str],
        monkeypatch: pytest.MonkeyPatch,
        override: str,
        said: str,
    ) -> None:
        monkeypatch.setenv("CXX", "no-such-compiler")
        answer = ask("train", *small, override)
        assert (answer.status, answer.errors) == (2, [f"sstune: {said}"])
        assert os.listdir() == []
