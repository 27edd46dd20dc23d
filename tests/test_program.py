"""The program in a process of its own: early signals, output that nobody reads, a disk that is full."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

import sstune

ROOT = Path(sstune.__file__).parents[1]
STOPPED = "sstune: stopped by a signal; run the same command to resume\n"

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """``start("report", stdout=...)``: the program, at work in ``tmp_path``."""

    def start(*arguments: str, before: str = "pass", **streams: Any) -> subprocess.Popen[str]:
        program = (
            f"import os, resource, signal, sys; {before}; from sstune.__main__ import main; sys.exit(main())"
        )
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
        command = [sys.executable, "-c", program, *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, **pipes)

    return start


def imports_torch(process: subprocess.Popen[str]) -> bool:
    return "libtorch_cpu" in Path(f"/proc/{process.pid}/maps").read_text()


@pytest.mark.parametrize(("number", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_during_the_imports_is_one_line(
    start: Start, number: str, status: int, small: list[str]
) -> None:
    with start("train", *small) as process:
        while not imports_torch(process):
            time.sleep(0.01)
        process.send_signal(getattr(signal, number))
        assert process.communicate() == ("", STOPPED)
        assert process.returncode == status


# Calls COMMAND whenever Python enters a function called NAME.
WHEN = "sys.setprofile(lambda frame, event, _: frame.f_code.co_name == '{name}' and {command})"


def test_a_signal_at_once_is_one_line(start: Start, small: list[str]) -> None:
    before = WHEN.format(name="_prepare_streams", command="os.kill(os.getpid(), signal.SIGINT)")
    with start("train", *small, before=before) as process:
        assert process.communicate() == ("", STOPPED)
        assert process.returncode == 130


def test_a_reader_that_goes_stops_the_work_which_the_same_line_goes_on_with(
    start: Start, small: list[str], tmp_path: Path
) -> None:
    line = ["train", *small, "epochs=100"]
    with start(*line) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while not process.stdout.readline().startswith("  epoch 1/"):
            pass
        process.stdout.close()
        error = process.stderr.read()
    assert process.returncode == 128 + signal.SIGPIPE
    assert error == "sstune: stopped because the output was closed; run the same command to resume\n"
    (run,) = (tmp_path / "runs" / "train").iterdir()
    assert "failure.json" not in os.listdir(run)
    with start(*line) as process:
        out, error = process.communicate()
    assert (process.returncode, error) == (0, "")
    assert "  resuming in epoch" in out
    assert (run / "result.json").exists()


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--cfg", "job"]])
def test_a_reader_that_goes_early_is_answered_in_silence(start: Start, arguments: list[str]) -> None:
    with start(*arguments) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        error = process.stderr.read()
    assert process.returncode == 128 + signal.SIGPIPE
    assert error.count("\n") <= 1


def test_a_disk_that_is_full_for_the_output(start: Start) -> None:
    with open("/dev/full", "w") as full, start("--help", stdout=full) as process:
        assert process.communicate()[1] == "sstune: failed: OSError: [Errno 28] No space left on device\n"
        assert process.returncode == 1


@pytest.mark.parametrize("closed", [(1,), (0, 1, 2)])
def test_closed_streams_are_no_files_of_the_run(
    start: Start, small: list[str], tmp_path: Path, closed: tuple[int, ...]
) -> None:
    """What a library prints would else go into the first file that is opened, which is the lock."""
    stray = WHEN.format(name="learn", command="os.write(1, b'stray')")
    program = f"import os, sys; from sstune.__main__ import main; {stray}; sys.exit(main())"
    closing = f"[os.close(each) for each in {closed}]"
    again = f"os.execv(sys.executable, [sys.executable, '-c', {program!r}, *sys.argv[1:]])"
    with start("train", *small, before=f"{closing}; {again}") as process:
        process.communicate()
    assert process.returncode == 0
    (run,) = (tmp_path / "runs" / "train").iterdir()
    assert set(os.listdir(run)) == {"config.yaml", "history.csv", "lock", "model.pt", "result.json"}
    assert (run / "lock").read_bytes() == b""


def test_a_full_disk_is_one_line_and_the_same_line_goes_on(
    start: Start, small: list[str], tmp_path: Path
) -> None:
    """A real limit: no file may be larger than 20 KB, which the checkpoint is."""
    line = ["train", *small, "epochs=2", "backbone=mlp"]
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))"
    with start(*line, before=limit) as process:
        error = process.communicate()[1]
    (run,) = (tmp_path / "runs" / "train").iterdir()
    said = f"file too large while writing {run.relative_to(tmp_path) / 'checkpoint.pt'}"
    assert (process.returncode, error) == (1, f"sstune: {said}\n")
    assert sorted(os.listdir(run)) == ["config.yaml", "data.json", "failure.json", "lock"]
    with start(*line) as process:
        assert process.communicate()[1] == ""
    assert process.returncode == 0
    assert "failure.json" not in os.listdir(run)


def test_a_run_directory_that_goes_is_named(start: Start, small: list[str], tmp_path: Path) -> None:
    with start("train", *small, "epochs=100000", stderr=subprocess.PIPE) as process:
        out: IO[str] | None = process.stdout
        assert out is not None
        assert process.stderr is not None
        run = tmp_path / out.readline().strip()
        while not (run / "checkpoint.pt").exists():
            time.sleep(0.01)
        run.rename(tmp_path / "elsewhere")
        out.read()
        error = process.stderr.read()
    directory = run.relative_to(tmp_path)
    assert process.returncode == 1
    assert error.startswith(f"sstune: {directory} is gone while writing {directory}/")
    assert error.count("\n") == 1
