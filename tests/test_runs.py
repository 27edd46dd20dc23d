from __future__ import annotations

import copy
import dataclasses
import errno
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import sstune
from sstune.identity import SCHEMA_VERSION, identity, semantic
from sstune.locking import Locked
from sstune.runs import Run, read_result
from sstune.schema import Redraw, RequestError, RunConfig
from sstune.storage import BEGAN, StorageError

Complete = Callable[..., RunConfig]
ROOT = Path(sstune.__file__).parents[1]


class TestDirectory:
    @pytest.mark.parametrize(
        ("command", "rule", "label"),
        [
            ("train", "bp", "runs/train/resnet20-d-bp-s3-"),
            ("finetune", "usf", "runs/finetune/resnet20-d-usf-weight_rms-s3-"),
            ("attack", "usf", "runs/attack/fgsm-resnet20-d-usf-weight_rms-s3-"),
        ],
    )
    def test_label(self, complete: Complete, command: str, rule: str, label: str) -> None:
        config = complete(command, seed=3)
        config.rule.name = rule
        run = Run(config, [], None)
        assert str(run.directory) == label + run.identity[:12]

    def test_the_last_ancestor_is_the_parent(self, complete: Complete) -> None:
        file, ancestor = {"file": "a.pt", "sha256": "f" * 64}, {"identity": "a" * 64}
        seen = [
            Run(complete(), lineage, None).identity for lineage in ([], [file], [file, ancestor], [ancestor])
        ]
        assert seen[2] == seen[3] == identity(complete(), "a" * 64, None)
        assert seen[1] == identity(complete(), "f" * 64, None)
        assert len(set(seen)) == 3


class TestLock:
    @pytest.fixture
    def run(self, complete: Complete, tmp_path: Path) -> Run:
        return Run(complete(out=str(tmp_path)), [], None)

    @pytest.fixture
    def holder(self, run: Run) -> Iterator[subprocess.Popen[str]]:
        """Another process that holds the lock until it is killed."""
        program = (
            "import sys, time; from pathlib import Path; from sstune.runs import Run\n"
            "run = Run.__new__(Run); run.directory = Path(sys.argv[1])\n"
            "with run.lock(): print('held', flush=True); time.sleep(60)"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(run.directory)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()
        process.communicate()

    def test_another_process_is_named_and_its_death_frees_the_lock(
        self, run: Run, holder: subprocess.Popen[str]
    ) -> None:
        with pytest.raises(Locked) as caught, run.lock():
            pass
        host = os.uname().nodename
        assert str(caught.value) == f"{run.directory} is being run by process {holder.pid} on {host}"
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with run.lock():
            assert f"process {os.getpid()} " in (run.directory / "lock").read_text()

    def test_waiting_ends_when_the_other_process_does(
        self, run: Run, holder: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        began = time.monotonic()
        killer = threading.Timer(0.3, holder.kill)
        killer.start()
        with run.lock(wait=True):
            waited = time.monotonic() - began
            assert f"process {os.getpid()} " in (run.directory / "lock").read_text()
            with pytest.raises(Locked), run.lock():
                pass
        assert 0.29 < waited < 30
        said = f"{run.directory} is being run by process {holder.pid} on {os.uname().nodename}"
        assert capsys.readouterr().out == f"{said}: waiting\n"

    def test_what_nobody_holds_is_not_waited_for(self, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        with run.lock(wait=True):
            pass
        assert capsys.readouterr().out == ""

    def test_is_freed_at_the_end_and_by_an_error(self, run: Run) -> None:
        run.directory.mkdir(parents=True)
        with pytest.raises(KeyError), run.lock():
            raise KeyError
        with run.lock(), pytest.raises(Locked), run.lock():
            pass
        assert (run.directory / "lock").read_text() == ""

    @staticmethod
    def fail(run: Run, kept: str) -> None:
        with run.lock():
            (run.directory / kept).write_text("")
            raise RequestError

    def test_work_that_keeps_nothing_leaves_no_directory(self, run: Run, tmp_path: Path) -> None:
        run.directory = tmp_path / "a" / "b" / "run"
        with pytest.raises(RequestError):
            self.fail(run, "config.yaml")
        assert os.listdir(tmp_path) == []
        for kept in ("checkpoint.pt", "config.yaml"):  # the second time there is something to keep
            with pytest.raises(RequestError):
                self.fail(run, kept)
        assert set(os.listdir(run.directory)) == {"lock", "config.yaml", "checkpoint.pt"}

    def test_who_waited_for_a_directory_that_went_has_one_of_its_own(self, run: Run) -> None:
        """The lock of a file that is removed would be nobody's."""
        second = threading.Event()

        def wait() -> None:
            with run.lock(wait=True):
                with pytest.raises(Locked), run.lock():
                    pass
                second.set()

        thread = threading.Thread(target=wait)

        def fail() -> None:
            with run.lock():
                thread.start()
                time.sleep(0.3)
                raise RequestError

        with pytest.raises(RequestError):
            fail()
        thread.join(timeout=30)
        assert second.is_set()

    def test_several_processes_whose_work_keeps_nothing(self, run: Run) -> None:
        """Directories come and go under their hands; each works alone and none fails otherwise."""
        program = (
            "import os, sys; from pathlib import Path; from sstune.runs import Run\n"
            "run = Run.__new__(Run); run.directory = Path(sys.argv[1])\n"
            "for _ in range(200):\n"
            "    try:\n"
            "        with run.lock(wait=True):\n"
            "            os.close(os.open(run.directory / 'config.yaml', os.O_CREAT | os.O_EXCL))\n"
            "            raise KeyError\n"
            "    except KeyError: pass"
        )
        command = [sys.executable, "-c", program, str(run.directory / "deep")]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        running = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for _ in range(3)]
        assert [process.wait(timeout=60) for process in running] == [0, 0, 0]
        assert not (run.directory / "deep").exists()

    def test_a_directory_in_its_place_is_set_aside(self, run: Run) -> None:
        (run.directory / "lock" / "kept").mkdir(parents=True)
        with run.lock():
            assert (run.directory / "lock").is_file()
        assert (run.directory / "damaged.lock" / "kept").is_dir()

    @pytest.mark.parametrize("at", ["run", "below"])
    def test_a_file_in_the_way_is_a_wrong_request(self, run: Run, tmp_path: Path, at: str) -> None:
        file = run.directory if at == "run" else run.directory.parent
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
        with pytest.raises(RequestError, match=f"^out: {file} is a file, expected a directory$"), run.lock():
            pass
        assert file.read_text() == "mine"

    def test_a_full_disk_is_no_wrong_request(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*arguments: object) -> None:
            raise OSError(errno.ENOSPC, "")

        monkeypatch.setattr(os, "mkdir", full)
        with pytest.raises(StorageError, match=r"^no space left on /\S* while making "), run.lock():
            pass


class TestRun:
    @pytest.fixture
    def run(self, complete: Complete, tmp_path: Path) -> Run:
        run = Run(complete("train", out=str(tmp_path)), [], None)
        run.directory.mkdir(parents=True)
        return run

    def test_an_unfinished_run_has_no_result(self, run: Run) -> None:
        run.begin()
        assert run.result() is None

    def test_begin_writes_the_configuration_and_forgets_the_failure(self, run: Run, tmp_path: Path) -> None:
        (run.directory / "failure.json").write_text("{}")
        run.config = dataclasses.replace(run.config, init_from=os.path.relpath(tmp_path / "a.pt"))
        run.begin()
        saved = yaml.safe_load((run.directory / "config.yaml").read_text())
        assert saved["init_from"] == str(tmp_path / "a.pt")
        assert saved["rule"] == {"name": "usf", "scale": "weight_rms", "include": ["*"], "exclude": []}
        assert list(saved) == [item.name for item in dataclasses.fields(RunConfig)]
        assert not (run.directory / "failure.json").exists()

    @pytest.fixture
    def forced(self, run: Run) -> Run:
        other = copy.copy(run)
        other.config = dataclasses.replace(run.config, force=True)
        return other

    def test_force_puts_the_earlier_result_aside(self, run: Run, forced: Run) -> None:
        run.begin()
        row = run.finish(measurements=[])
        state = {"checkpoint.pt": "state", "outcomes.npz": "outcomes"}
        for name, text in state.items():
            (run.directory / name).write_text(text)
        run.begin()
        assert run.result() == row
        forced.begin()
        assert run.result() is None
        assert json.loads((run.directory / "previous.result.json").read_text()) == row
        for name, text in state.items():
            assert not (run.directory / name).exists()
            assert (run.directory / f"previous.{name}").read_text() == text

    @pytest.mark.parametrize("done", [True, False])
    def test_force_goes_on_from_its_own_interrupted_work_only(
        self, run: Run, forced: Run, done: bool
    ) -> None:
        state = run.directory / "outcomes.npz"
        run.begin()
        state.write_text("of a line without force")
        forced.begin()
        assert not state.exists()
        state.write_text("of a line with it")
        if done:
            run.finish(measurements=[])
        forced.begin()
        assert state.exists() is not done

    def test_a_kill_while_force_puts_things_aside_leaves_no_old_state_to_go_on_from(
        self, run: Run, forced: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An attack that is done keeps its outcomes: taken for its own, they would answer at once."""
        outcomes = run.directory / "outcomes.npz"
        replace = os.replace
        for moves in range(3):
            forced.begin()
            outcomes.write_text("old")
            forced.finish(measurements=[])
            left = iter(range(moves))

            def kill(source: Path, target: Path, left: Iterator[int] = left) -> None:
                if next(left, None) is None:
                    raise KeyboardInterrupt
                replace(source, target)

            with monkeypatch.context() as patch:
                patch.setattr(os, "replace", kill)
                with pytest.raises(KeyboardInterrupt):
                    forced.begin()
            forced.begin()
            assert not outcomes.exists()
            assert run.result() is None

    def test_force_is_answered_by_what_was_made_for_it(
        self, run: Run, forced: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def answered(began: float | None) -> bool:
            if began is None:
                monkeypatch.delenv(BEGAN, raising=False)
            else:
                monkeypatch.setenv(BEGAN, repr(began))
            return forced.answer() is not None

        assert not answered(0)
        run.begin()
        row = run.finish(measurements=[])
        assert run.answer() == row
        assert not answered(0)  # made without force
        forced.begin()
        forced.finish(measurements=[])
        made = (run.directory / "result.json").stat().st_mtime
        assert answered(made - 1)  # by another process of the same sweep, or one at work at the same time
        assert not answered(made + 1)  # by an earlier line
        assert not answered(None)  # a call from Python begins now
        assert run.answer() is not None

    @pytest.mark.parametrize("name", ["checkpoint.pt", "config.yaml", "history.csv", "failure.json"])
    def test_a_directory_in_the_place_of_a_file_is_set_aside(
        self, run: Run, name: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (run.directory / name / "kept").mkdir(parents=True)
        run.begin()
        assert (run.directory / f"damaged.{name}" / "kept").is_dir()
        assert not (run.directory / name).is_dir()
        assert capsys.readouterr().err.count(str(run.directory / name)) == 1

    def test_the_row_is_written_last_and_the_state_removed(self, run: Run) -> None:
        (run.directory / "checkpoint.pt").write_text("state")
        row = run.finish(measurements=[1], seconds=1.5)
        assert run.result() == row
        assert not (run.directory / "checkpoint.pt").exists()
        assert row["schema_version"] == SCHEMA_VERSION
        assert row["identity"] == run.identity
        assert (row["command"], row["lineage"], row["measurements"], row["seconds"]) == (
            "train",
            [],
            [1],
            1.5,
        )
        assert row["config"] == semantic(run.config)
        assert row["versions"]["sstune"] == sstune.__version__
        assert row["versions"]["torch"] == importlib.metadata.version("torch")
        assert set(row["git"]) == {"commit", "dirty"}

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("{", "not JSON"),
            ("[]", "not a row of schema version 1"),
            ("{}", "not a row of schema version 1"),
            ('{"schema_version": 2}', "not a row of schema version 1"),
            ('{"schema_version": 1, "command": "train", "identity": 3}', "has no identity"),
            ("[" * 100_000, "not JSON"),
            ("\0", "not JSON"),
        ],
    )
    def test_what_is_no_row_is_refused(self, tmp_path: Path, content: str, said: str) -> None:
        (tmp_path / "result.json").write_text(content)
        with pytest.raises(RequestError, match=said) as caught:
            read_result(tmp_path)
        assert str(tmp_path / "result.json") in str(caught.value)
        assert str(caught.value).endswith("; delete or rename it, and repeat that run")

    def test_a_row_that_cannot_be_read_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "result.json").mkdir()
        with pytest.raises(
            RequestError, match=r"result.json: cannot be read \(Is a directory\); delete or rename it"
        ):
            read_result(tmp_path)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_row_names_the_commit_only_of_a_checkout_that_has_this_package(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "sstune", checkout / "sstune", ignore=shutil.ignore_patterns("__pycache__"))
    program = "import json; from sstune import runs; print(json.dumps(runs._git()))"

    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment.update(PYTHONPATH=str(checkout), PYTHONDONTWRITEBYTECODE="1")

    def answer(*command: str) -> str:
        return subprocess.check_output(command, cwd=checkout, env=environment, text=True).strip()

    def git(*arguments: str) -> str:
        person = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        return answer("git", *person, *arguments)

    def found() -> Any:
        return json.loads(answer(sys.executable, "-c", program))

    git("init", "--quiet")
    assert found() == {"commit": None, "dirty": None}
    git("add", ".")
    git("commit", "--quiet", "--message", "all")
    commit = git("rev-parse", "HEAD")
    assert found() == {"commit": commit, "dirty": False}
    (checkout / "sstune" / "runs.py").open("a").write("# changed\n")
    assert found() == {"commit": commit, "dirty": True}


def test_identity_is_computed_without_torch() -> None:
    program = "import sys; from sstune.composition import compose; from sstune.runs import Run\n"
    program += "Run(compose('train'), [], None); print('torch' in sys.modules)"
    printed = subprocess.check_output(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True
    )
    assert printed == "False\n"


def test_redraw_counts(complete: Complete) -> None:
    config = complete(rule="brsf")
    other = dataclasses.replace(config, rule=dataclasses.replace(config.rule, redraw=Redraw.forward))  # type: ignore[call-arg]
    assert identity(config, None, None) != identity(other, None, None)
