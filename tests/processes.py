"""``sstune`` in a process of its own, forked from a server in which torch is already imported.

A process started from nothing spends ten seconds importing; a forked one starts at once and is as real: it
has its own memory, signals and exit status. The server imports and does nothing else.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

PATIENCE = 120  # seconds; what is waited for takes one or two on an idle machine

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch._dynamo", "torchattacks", "sklearn.datasets", "hydra"])


def run_all(task: Callable[..., None], arguments: list[tuple[Any, ...]]) -> None:
    """One process for each tuple of arguments, side by side; all must end well within twice ``PATIENCE``."""
    running = [_CONTEXT.Process(target=task, args=each) for each in arguments]
    for process in running:
        process.start()
    for process in running:
        process.join(timeout=2 * PATIENCE)
    left = [process for process in running if process.is_alive()]
    for process in left:
        process.kill()
    assert not left
    assert [process.exitcode for process in running] == [0] * len(running)


def start(
    arguments: list[str], directory: Path, output: Path, changed: dict[str, Any] | None = None
) -> BaseProcess:
    """Run ``sstune ARGUMENTS`` in ``directory``, with stdout and stderr in ``output``.

    Args:
        changed: new values of modules' constants, by full name ("sstune.training.engine.PROBE").
    """
    process = _CONTEXT.Process(target=_main, args=(arguments, directory, output, changed or {}))
    process.start()
    return process


def wait(process: BaseProcess) -> int:
    """Exit status; negative for a signal that killed the process."""
    process.join(timeout=PATIENCE)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"sstune did not end within {PATIENCE} s")
    return process.exitcode


def until(condition: Callable[[], bool], process: BaseProcess) -> None:
    """Return as soon as ``condition`` holds, looking every 2 ms, or when ``process`` has ended."""
    deadline = time.monotonic() + PATIENCE
    while not condition() and process.is_alive():
        if time.monotonic() > deadline:
            process.kill()
            raise TimeoutError(f"nothing happened within {PATIENCE} s")
        time.sleep(0.002)


def _main(arguments: list[str], directory: Path, output: Path, changed: dict[str, Any]) -> None:
    os.chdir(directory)
    file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    for name, value in changed.items():
        module, _, constant = name.rpartition(".")
        setattr(import_module(module), constant, value)
    from sstune.cli import main

    sys.exit(main(arguments))
