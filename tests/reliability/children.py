"""``sstune`` in processes forked from this one, with a fault at a chosen change of a file.

This process is one that :func:`preloaded` started, and has imported what a command needs, so that a child
starts within milliseconds. It computes nothing before: a child inherits no thread.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

PATIENCE = 120  # seconds; what is waited for takes one or two on an idle machine
LIBRARY = "FILE_FAULTS_LIBRARY"  # in the environment: where it is
SOURCE = Path(__file__).with_name("file_faults.c")
COUNT, KILL, KILL_HALFWAY, FULL, SIGNAL = range(5)  # as in file_faults.c


class Fault(NamedTuple):
    """What happens at the ``number``-th change of a file (1 is the first); nothing by default."""

    number: int = 0
    action: int = COUNT


NO_FAULT = Fault()


class Change(NamedTuple):
    """A change of a file: its number in its process, the system's name for it, and the file's path."""

    process: int
    number: int
    operation: str
    path: str

    @property
    def name(self) -> str:
        """The file's name; of a temporary one, the name that it is to get."""
        found = re.fullmatch(r"\.(.+?)\.[a-z0-9_]{8}(\.\w+)?", Path(self.path).name)
        return found[1] if found else Path(self.path).name


@dataclass
class Ended:
    """What a command line gave. ``status`` is negative for a signal that killed the process."""

    status: int
    out: str
    err: str
    seconds: float
    changes: list[Change] = field(repr=False)

    def completed(self, *names: str) -> Counter[str]:
        """How many times each file of these names was put in its place, by run and name."""
        done = (Path(change.path) for change in self.changes if change.operation == "done")
        return Counter(f"{path.parent.name}/{path.name}" for path in done if path.name in names)

    @property
    def errors(self) -> list[str]:
        return self.err.splitlines()


def compiler() -> str | None:
    """The C compiler that :func:`preloaded` needs."""
    return shutil.which("gcc")


def preloaded(program: Sequence[str], folder: Path) -> int:
    """Run a Python program with the library of ``file_faults.c``, made in ``folder``; its exit status."""
    library = folder / "file_faults.so"
    build = [str(compiler()), "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(build, check=True)
    environment = {
        **os.environ,
        "LD_PRELOAD": str(library),
        LIBRARY: str(library),
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "agg",
    }
    return subprocess.run([sys.executable, *program], env=environment).returncode


class Child:
    """``sstune ARGUMENTS`` in ``folder``, from the moment it starts.

    Args:
        changed: new values of modules' constants, by full name ("sstune.training.engine.SAVE_EVERY").
        everywhere: the fault also meets the processes that this one starts, each with numbers of its own,
            and their changes are noted, too.

    Its output and the log of its changes lie beside ``folder``. It leads a process group of its own.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        fault: Fault = NO_FAULT,
        changed: dict[str, Any] | None = None,
        everywhere: bool = False,
    ) -> None:
        number = len(list(folder.parent.glob("*.log")))
        self.paths = [folder.parent / f"{number}.{kind}" for kind in ("out", "err", "log")]
        for path in self.paths:
            path.touch()
        self.began = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            _become(arguments, folder, fault, changed or {}, everywhere, self.paths)

    def wait(self) -> Ended:
        """Its end; a child that does not come to one is killed, and its status is that."""
        while (status := self.poll()) is None:
            if time.monotonic() - self.began > PATIENCE:
                os.killpg(self.pid, signal.SIGKILL)
            time.sleep(0.003)
        out, err, log = (path.read_text(encoding="utf-8", errors="replace") for path in self.paths)
        changes = []
        for line in log.splitlines():
            process, number, operation, path = line.split(" ", 3)
            changes.append(Change(int(process), int(number), operation, path))
        return Ended(status, out, err, time.monotonic() - self.began, changes)

    def poll(self) -> int | None:
        """Its exit status, or None while it runs."""
        if self.pid:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid, self.status = 0, os.waitstatus_to_exitcode(status)
        return None if self.pid else self.status

    def changes_made(self) -> int:
        """How many lines its log has so far."""
        return self.paths[2].read_bytes().count(b"\n")

    def signal_after(self, seconds: float, number: int, changes: int = 0, group: bool = False) -> Ended:
        """Send a signal so long after the start, and after so many changes of files; wait for its end.

        Args:
            group: to all of its process group instead of to itself.
        """
        while self.poll() is None and (
            time.monotonic() - self.began < seconds or self.changes_made() < changes
        ):
            time.sleep(0.001)
        if self.poll() is None:
            (os.killpg if group else os.kill)(self.pid, number)
        return self.wait()


def _become(
    arguments: Sequence[str],
    folder: Path,
    fault: Fault,
    changed: dict[str, Any],
    everywhere: bool,
    paths: Sequence[Path],
) -> None:
    """The rest of a forked child's life."""
    status = 99
    try:
        os.setsid()
        os.chdir(folder)
        for stream, path in ((1, paths[0]), (2, paths[1])):
            os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for name, value in changed.items():
            module, _, constant = name.rpartition(".")
            setattr(import_module(module), constant, value)
        if everywhere:
            os.environ["FILE_FAULTS"] = f"{folder} {paths[2]} {fault.number} {fault.action}"
        library = ctypes.CDLL(os.environ[LIBRARY])
        library.arm(bytes(folder), bytes(paths[2]), ctypes.c_long(fault.number), fault.action)
        sys.argv = ["sstune", *arguments]
        from sstune.__main__ import main

        status = main()
        sys.stdout.flush()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
