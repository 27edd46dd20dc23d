"""SIGTERM, SIGINT, SIGHUP and SIGUSR2 set a flag, so that work stops where its state can be saved."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType

# Under submitit, Slurm sends SIGUSR2 before a job's time limit.
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)

RESUME_HINT = "stopped by a signal; run the same command to resume"


class Stopped(SystemExit):
    """Work was stopped by a signal with its state saved; exit status 128 + signal (143, 130, 129)."""


class StopFlag:
    """Remembers the first signal; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def __bool__(self) -> bool:
        return self.signal is not None

    def stop(self) -> Stopped:
        """The exception to raise once the state is saved."""
        assert self.signal is not None
        return Stopped(128 + self.signal)


def unheard(number: int) -> bool:
    """Whether the signal is SIGHUP and ignored, as under nohup."""
    return number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN


@contextmanager
def stop_flag() -> Iterator[StopFlag]:
    """Inside, these signals set the yielded flag instead of ending the process."""
    flag = StopFlag()
    before = {number: signal.signal(number, flag.handle) for number in STOPPING if not unheard(number)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@cache
def end_with(parent: int) -> None:
    """Send this process SIGTERM once its ``parent`` process has ended.

    The signal is repeated until this process ends, as a launcher's worker would start its next cell.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.1)
        while True:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)

    threading.Thread(target=watch, daemon=True).start()
