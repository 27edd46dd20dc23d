"""Sweeps of real, small runs: a linear network on the digits."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hydra
import processes
import pytest

import sstune
from sstune import catalogue, schema, sweeps
from sstune.commands.lineage import resolve_run
from sstune.composition import cells
from sstune.locking import locked

Ask = Callable[..., Any]
ROOT = Path(sstune.__file__).parents[1]
TINY = [
    "backbone=mlp", "backbone.hidden=[]", "epochs=1", "dataset.test_fraction=0.8", "alignment=false",
    "threads=1", "device=cpu",
]  # fmt: skip


def runs(folder: Path, command: str = "train") -> list[Path]:
    """The finished runs below ``folder``/runs."""
    return sorted(path.parent for path in (folder / "runs" / command).glob("*/result.json"))


def worked_on(output: str) -> list[str]:
    """The runs that were carried out to their end, by directory name."""
    return re.findall(r"^runs/\w+/(\S+)\n(?:  .*\n)*?  epoch \d+ chosen", output, re.MULTILINE)


def directories(*overrides: str) -> list[Path]:
    """Where each cell of a ``train`` line goes, before anything is run."""
    resolved = [resolve_run(cell.request) for cell in cells("train", [*TINY, *overrides])]
    return [run.directory for run in resolved if run is not None]


Hold = Callable[[Path, Path], "subprocess.Popen[str]"]


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Hold]:
    """``hold(directory, until)``: another process works on that run until there is a file ``until``."""
    program = (
        "import sys, time; from pathlib import Path; from sstune.runs import Run\n"
        "run = Run.__new__(Run); run.directory = Path(sys.argv[1])\n"
        "with run.lock():\n"
        "    print('held', flush=True)\n"
        "    while not Path(sys.argv[2]).exists(): time.sleep(0.001)"
    )
    started: list[subprocess.Popen[str]] = []

    def hold(directory: Path, until: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(directory), str(until)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.communicate()


class TestOneProcess:
    def test_every_cell_is_run_once_and_then_answered_from_its_row(self, ask: Ask, tmp_path: Path) -> None:
        line = ["train", "-m", *TINY, "seed=0,1", "optimizer.lr=0.1,0.2"]
        first = ask(*line)
        assert (first.status, first.err) == (0, "")
        assert first.out.startswith("4 cells, 0 done already\n")
        assert sorted(worked_on(first.out)) == [run.name for run in runs(tmp_path)]
        configs = [json.loads((run / "result.json").read_text())["config"] for run in runs(tmp_path)]
        assert sorted((config["seed"], config["optimizer"]["lr"]) for config in configs) == [
            (0, 0.1), (0, 0.2), (1, 0.1), (1, 0.2),
        ]  # fmt: skip
        again = ask(*line)
        assert (again.status, again.out, again.err) == (0, "4 cells, 4 done already\n", "")
        more = ask(*line[:-2], "seed=0,1,2", line[-1])
        assert more.out.startswith("6 cells, 4 done already\n")
        assert len(worked_on(more.out)) == 2
        assert len(runs(tmp_path)) == 6

    def test_force_runs_every_cell_again(self, ask: Ask) -> None:
        line = ["train", "-m", *TINY, "seed=0,1"]
        assert ask(*line).status == 0
        again = ask(*line, "force=true")
        assert again.out.startswith("2 cells, 0 done already\n")
        assert len(worked_on(again.out)) == 2

    @pytest.mark.parametrize(
        ("overrides", "said"),
        [
            (["seed=0,-1"], "seed: -1 is out of range, expected >= 0 (in the cell "),
            (["rule=bp,usb"], "rule: there is no 'usb', did you mean 'usf'?"),
            (["init_from=.", "seed=0,1"], "init_from: train starts from random"),
            (
                ["seed=0,1", "hydra/launcher=joblip"],
                "hydra/launcher: 'joblip' is not installed; joblib needs pip install 'sstune[joblib]', "
                "submitit_slurm 'sstune[slurm]'",
            ),
            (["seed=0,1", "hydra/launcher=joblib", "hydra.launcher.jobs=2"], "hydra.launcher.jobs: "),
        ],
    )
    def test_a_wrong_line_is_refused_before_anything_is_run(
        self, ask: Ask, tmp_path: Path, overrides: list[str], said: str
    ) -> None:
        answer = ask("train", "-m", *TINY, *overrides)
        assert answer.status == 2
        (error,) = answer.errors
        assert error.startswith(f"sstune: {said}")
        assert not (tmp_path / "runs").exists()

    def test_a_wrong_source_in_one_cell_is_refused_before_anything_is_run(
        self, ask: Ask, tmp_path: Path
    ) -> None:
        assert ask("train", *TINY).status == 0
        (parent,) = runs(tmp_path)
        (tmp_path / "empty").mkdir()
        answer = ask("finetune", "-m", "epochs=1", f"init_from={parent},empty")
        assert answer.errors == ["sstune: init_from: empty is not a finished train or finetune run"]
        answer = ask("attack", "-m", f"init_from={parent}", "epochs=3", "attack=fgsm,pgd")
        assert answer.errors == [
            "sstune: epochs: attack does not train when init_from or model.factory is given"
        ]
        assert answer.status == 2
        assert [path.name for path in (tmp_path / "runs").iterdir()] == ["train"]

    @pytest.mark.parametrize(("size", "status"), [("1", 0), ("2", 2)])
    def test_it_is_refused_under_torchrun(
        self, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str, status: int
    ) -> None:
        monkeypatch.setenv("WORLD_SIZE", size)
        answer = ask("train", "-m", *TINY, "seed=0,1")
        assert answer.status == status
        refused = "sstune: -m: a sweep cannot run under torchrun, whose processes share one run"
        assert answer.errors == ([refused] if status else [])
        assert (tmp_path / "runs").exists() == (status == 0)

    def test_an_attack_is_refused_under_torchrun(self, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        answer = ask("attack")
        assert (answer.status, len(answer.errors)) == (2, 1)
        assert answer.err.startswith("sstune: attack: runs in one process")

    def test_a_failing_cell_and_a_late_wrong_one_do_not_stop_the_others(
        self, ask: Ask, tmp_path: Path
    ) -> None:
        lrs = "optimizer.lr=1e30,0.1"
        answer = ask("train", "-m", *TINY, lrs, "rule=usf", "rule.include=[head],[heat]")
        assert answer.status == 1
        said = [error for error in answer.errors if error.startswith("sstune:")]
        assert [error.split(":")[1].strip() for error in said[:-2]] == ["failed", *["rule.include"] * 2]
        assert said[-2:] == [
            "sstune: 2 cells were refused",
            "sstune: 1 cell is not done; run the same command to finish it",
        ]
        assert len(runs(tmp_path)) == 1

    def test_only_wrong_requests_are_a_wrong_request(self, ask: Ask, tmp_path: Path) -> None:
        """They are found as late as this by the network that they name a layer of; nothing stays of them."""
        answer = ask("train", "-m", *TINY, "optimizer.freeze=[heat],[hed]")
        assert (answer.status, len(answer.errors)) == (2, 3)
        assert answer.errors[-1] == "sstune: 2 cells were refused"
        assert not (tmp_path / "runs").exists()

    def test_cells_that_share_a_parent_make_it_once(self, ask: Ask, tmp_path: Path) -> None:
        data = [each for each in TINY if not each.startswith("epochs")]
        answer = ask("finetune", "-m", *data, "epochs=1", "rule=usf,frsf")
        assert (answer.status, answer.err) == (0, "")
        (parent,) = runs(tmp_path, "train")
        assert len(runs(tmp_path, "finetune")) == 2
        assert Counter(worked_on(answer.out))[parent.name] == 1
        assert len(worked_on(answer.out)) == 3
        again = ask("finetune", "-m", *data, "epochs=1", "rule=usf,frsf")
        assert again.out == "2 cells, 2 done already\n"


class TestSeveralProcesses:
    @pytest.mark.parametrize("released", [True, False])
    def test_a_cell_of_another_process_is_tried_again_at_the_end(
        self, ask: Ask, tmp_path: Path, hold: Hold, released: bool
    ) -> None:
        first, second = directories("seed=0,1")
        holder = hold(first, second / "config.yaml" if released else tmp_path / "never")
        answer = ask("train", "-m", *TINY, "seed=0,1")
        said = [error for error in answer.errors if error.startswith(f"sstune: {first} is being run by")]
        assert len(said) == (1 if released else 2)
        assert f"by process {holder.pid} on " in said[0]
        assert answer.status == (0 if released else 1)
        assert worked_on(answer.out) == [second.name, *([first.name] if released else [])]

    @pytest.mark.parametrize(("n", "force"), [(2, False), (2, True), (4, True)])
    def test_sweepers_run_each_cell_exactly_once(self, tmp_path: Path, n: int, force: bool) -> None:
        """With ``force``, once for all of them; rows that were there before are made anew."""
        line = ["train", "-m", *TINY, "seed=range(12)", f"force={force}"]
        names = [f"sweeper {number}" for number in range(n)]
        if force:
            before = [*line[:-2], "seed=0,1", "force=true"]
            assert processes.wait(processes.start(before, tmp_path, tmp_path / "before")) == 0
        started = [processes.start(line, tmp_path, tmp_path / name) for name in names]
        statuses = [processes.wait(process) for process in started]
        assert set(statuses) <= {0, 1}
        assert min(statuses) == 0
        finished = Counter(each for name in names for each in worked_on((tmp_path / name).read_text()))
        assert finished == {run.name: 1 for run in runs(tmp_path)}
        assert len(finished) == 12
        assert len(list(tmp_path.rglob("previous.result.json"))) == (2 if force else 0)

    def test_a_forced_run_goes_on_after_a_stop_and_is_made_anew_after_its_end(self, tmp_path: Path) -> None:
        line = ["train", *TINY, "epochs=300", "force=true"]
        first = processes.start(line, tmp_path, tmp_path / "first")
        processes.until(lambda: any(tmp_path.glob("runs/train/*/checkpoint.pt")), first)
        assert first.pid is not None
        os.kill(first.pid, signal.SIGTERM)
        assert processes.wait(first) == 143
        for name, resumed in (("second", True), ("third", False)):
            assert processes.wait(processes.start(line, tmp_path, tmp_path / name)) == 0
            assert ("resuming in epoch" in (tmp_path / name).read_text()) is resumed

    def test_the_parent_that_another_process_makes_is_waited_for(self, tmp_path: Path) -> None:
        line = ["finetune", *TINY, "rule=usf"]
        first = processes.start(line, tmp_path, tmp_path / "one")
        processes.until(lambda: any(tmp_path.glob("runs/train/*/config.yaml")), first)
        second = processes.start([*line[:-1], "rule=frsf"], tmp_path, tmp_path / "two")
        assert [processes.wait(first), processes.wait(second)] == [0, 0]
        (parent,) = runs(tmp_path, "train")
        outputs = [(tmp_path / name).read_text() for name in ("one", "two")]
        assert [worked_on(output).count(parent.name) for output in outputs] == [1, 0]
        assert len(runs(tmp_path, "finetune")) == 2


class TestLaunchers:
    """Hydra's launchers start interpreters from nothing, which takes them some seconds."""

    def test_joblib_runs_several_cells_at_once_and_says_which_failed(self, ask: Ask, tmp_path: Path) -> None:
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
        launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
        answer = ask(
            "train", "-m", *TINY, "optimizer.lr=0.1,1e30", "optimizer.lr_factors={head:2}", *launcher
        )
        assert answer.status == 1
        assert answer.errors[-1] == "sstune: 1 cell is not done; run the same command to finish it"
        (run,) = runs(tmp_path)
        config = json.loads((run / "result.json").read_text())["config"]["optimizer"]
        assert (config["lr"], config["lr_factors"]) == (0.1, [{"head": 2.0}])
        (failed,) = (tmp_path / "runs" / "train").glob("*/failure.json")
        assert json.loads(failed.read_text())["error"].startswith("FloatingPointError")

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
    def test_workers_end_with_their_sweeper_and_keep_their_state(
        self, tmp_path: Path, number: signal.Signals
    ) -> None:
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
        launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
        line = ["train", "-m", *TINY, "epochs=100000", "seed=0,1,2", *launcher]
        sweeper = processes.start(line, tmp_path, tmp_path / "output")

        def states() -> list[Path]:
            return list(tmp_path.glob("runs/train/*/checkpoint.pt"))

        processes.until(lambda: len(states()) == 2, sweeper)
        assert sweeper.pid is not None
        os.kill(sweeper.pid, number)
        assert processes.wait(sweeper) == -number
        for state in states():
            with locked(state.parent, wait=True):  # as soon as its worker has ended
                assert (state.parent / "config.yaml").exists()
        assert len(states()) == 2  # none went on to the third cell

    def test_submitit_is_given_only_what_is_left(self, ask: Ask, tmp_path: Path) -> None:
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
        assert ask("train", *TINY, "seed=0").status == 0
        (done,) = runs(tmp_path)
        before = (done / "result.json").stat().st_mtime_ns
        line = ["train", "-m", *TINY, "seed=0,1", "hydra/launcher=submitit_local"]
        answer = ask(*line)
        assert answer.status == 0
        assert answer.out.startswith("2 cells, 1 done already\n")
        assert len(list((tmp_path / "runs" / ".sweep").rglob("*_submitted.pkl"))) == 1
        assert (done / "result.json").stat().st_mtime_ns == before
        assert [run.name for run in runs(tmp_path)] == sorted(path.name for path in directories("seed=0,1"))
        again = ask(*line)
        assert (again.status, again.out) == (0, "2 cells, 2 done already\n")

    def test_a_launcher_keeps_its_files_below_the_home_that_out_names(
        self, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=1"]
        assert ask("train", "-m", *TINY, "out=~/x", *launcher).status == 0
        assert sorted(path.name for path in (tmp_path / "home" / "x").iterdir()) == [".sweep", "train"]
        assert not (tmp_path / "~").exists()

    def test_one_job_of_joblib_runs_in_the_sweeper_itself(self, tmp_path: Path) -> None:
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
        line = ["train", "-m", *TINY, "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=1"]
        assert processes.wait(processes.start(line, tmp_path, tmp_path / "output")) == 0
        assert len(runs(tmp_path)) == 2


def test_a_launched_cell_keeps_what_a_preset_sets_under_an_earlier_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher hands over what Hydra composed, in which earlier names of keys stand as they are."""
    shutil.copytree(catalogue.CONF, tmp_path / "conf")
    preset = "# @package _global_\ntask:\n  adversarial: pgd3\n"
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(preset)
    monkeypatch.setattr(catalogue, "CONF", tmp_path / "conf")
    overrides = ["experiment=mine"]
    schema.register()
    with hydra.initialize_config_dir(str(tmp_path / "conf"), version_base="1.3"):
        composed = hydra.compose("train", overrides)
    job = SimpleNamespace(overrides=SimpleNamespace(task=overrides))
    monkeypatch.setattr("sstune.sweeps.HydraConfig.get", lambda: job)
    requests: list[Any] = []
    monkeypatch.setattr(sweeps, "carry_out", requests.append)
    sweeps._launched("train", None, composed)
    assert [request.config.adversary.attack for request in requests] == ["pgd3"]
