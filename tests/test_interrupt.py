from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import sstune
from sstune.interrupt import StopFlag, Stopped, stop_flag

ROOT = Path(sstune.__file__).parents[1]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_sets_the_flag_and_names_the_exit_status(number: signal.Signals, status: int) -> None:
    with stop_flag() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        with pytest.raises(Stopped) as caught:
            raise stop.stop()
    assert caught.value.code == status
    assert isinstance(caught.value, SystemExit)


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_sigint_interrupts_at_once(first: signal.Signals) -> None:
    with stop_flag() as stop:
        os.kill(os.getpid(), first)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == first


def test_a_second_sigterm_does_not_interrupt() -> None:
    with stop_flag() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM


def test_the_handlers_are_put_back_whatever_happens() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    def fail() -> None:
        with stop_flag() as stop:
            assert signal.getsignal(signal.SIGTERM) == stop.handle
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_hang_up_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_flag() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("flagged", [True, False])
def test_a_process_ends_with_its_parent_however_that_ends(flagged: bool, tmp_path: Path) -> None:
    """Its work is told first, as by SIGTERM; what it then goes on with ends."""
    child = (
        "import os, sys, time; from sstune.interrupt import end_with, stop_flag\n"
        "end_with(int(sys.argv[1]))\n"
        "print(os.getpid(), flush=True)\n"
        + (
            "with stop_flag() as stop:\n    while not stop: time.sleep(0.01)\nopen('saved', 'w').close()\n"
            if flagged
            else ""
        )
        + "time.sleep(60)"
    )
    program = (
        "import os, subprocess, sys\nsubprocess.run([sys.executable, '-c', sys.argv[1], str(os.getpid())])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, child]
    with subprocess.Popen(
        command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
        assert parent.stdout.read() == ""  # until the child, which has the pipe too, has ended
    assert not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes()
    assert (tmp_path / "saved").exists() is flagged


def test_a_flag_without_a_signal_is_false() -> None:
    assert not StopFlag()
