"""Several sweepers on one folder; and a sweep whose runs are made by processes that joblib starts."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from children import KILL, Child, Ended, Fault
from contents import contents, differences
from scenes import Scene
from trials import Complaint, Interrupted, Trial

ENDING = 10.0  # seconds in which a launcher's processes must follow it


@dataclass(frozen=True)
class Sweepers(Trial):
    """``n`` processes with the same line at once: each run is made by one of them, and once.

    ``killed``: after so many changes of files by all of them, the one that made most of them is killed. In
    the end the line is run once more, without force, which finishes what was left.
    """

    n: int
    killed: int | None

    @property
    def fault(self) -> str:
        return f"{self.n} sweepers{', one of them killed' if self.killed else ''}"

    def __str__(self) -> str:
        return f"killed after {self.killed}" if self.killed else "undisturbed"

    def run(self, place: Path) -> list[Complaint]:
        folder = self.scene.folder(place)
        started = [self.scene.start(folder) for _ in range(self.n)]
        victim = self._killed(started) if self.killed else None
        ends = [child.wait() for child in started]
        complaints = []
        for child, end in zip(started, ends, strict=True):
            expected = (0, 1, -signal.SIGKILL) if child is victim else (0, 1)  # 1: others were at work
            if end.status not in expected or "Traceback" in end.err:
                complaints.append(Complaint("blocked", f"status {end.status}: {end.err[-600:]}"))
        last = Child([word for word in self.scene.line if word != "force=true"], folder).wait()
        if last.status:
            complaints.append(Complaint("blocked", f"at the end status {last.status}: {last.err[-600:]}"))
        made = Counter(
            change.path
            for end in [*ends, last]
            for change in end.changes
            if change.operation == "done" and change.path.endswith("/result.json")
        )
        complaints += [Complaint("lost", f"{path} was made {n} times") for path, n in made.items() if n > 1]
        rows = [str(folder / name) for name in self.scene.after if name.endswith("/result.json")]
        different = differences(contents(folder), self.scene.after)
        if self.killed and "force=true" in self.scene.line:  # what nobody came to has its earlier row
            different = [text for text in different if "previous." not in text]
        else:
            complaints += [Complaint("lost", f"{path} was not made") for path in rows if path not in made]
        return complaints + [Complaint("different", text) for text in different]

    def _killed(self, started: list[Child]) -> Child:
        while sum(child.changes_made() for child in started) < int(self.killed or 0):
            time.sleep(0.001)
        at_work = [child for child in started if child.poll() is None]
        busiest = max(at_work or started, key=Child.changes_made)
        busiest.signal_after(0, signal.SIGKILL)
        return busiest


@dataclass(frozen=True)
class JoblibInterrupted(Interrupted):
    """A sweep over joblib's processes is cut short; its processes end with it, and the same line finishes it.

    Args:
        whom: "the sweeper" or "all" of its process group, after ``changes`` of files by all of them; or
            "a worker", at the one of its own that has this number.
    """

    whom: str
    signal: signal.Signals
    changes: int

    @property
    def fault(self) -> str:
        return (
            "killed at a change of a file"
            if self.whom == "a worker"
            else ("killed at a random moment" if self.signal is signal.SIGKILL else "stopped by a signal")
        )

    def __str__(self) -> str:
        return f"{self.signal.name} to {self.whom} at change {self.changes}"

    def cut_short(self, folder: Path) -> Ended:
        if self.whom == "a worker":
            child = self.scene.start(folder, Fault(self.changes, KILL))
            group, ended = child.pid, child.wait()
        else:
            child = self.scene.start(folder)
            group, ended = child.pid, child.signal_after(0, self.signal, self.changes, self.whom == "all")
        deadline = time.monotonic() + ENDING
        while (left := _alive(group)) and time.monotonic() < deadline:
            time.sleep(0.05)
        if left:
            os.killpg(group, signal.SIGKILL)
            ended.err += f"\n{len(left)} processes outlived their sweeper"
        return ended

    def judge_first(self, first: Ended) -> list[Complaint]:
        found = [Complaint("blocked", line) for line in first.errors if "outlived" in line]
        expected = 1 if self.whom == "a worker" else 128 + self.signal
        if self.whom != "a worker" and self.signal is signal.SIGKILL:
            expected = -signal.SIGKILL
        if first.status not in (expected, 0) or "Traceback" in first.err:
            found.append(Complaint("unclear", f"status {first.status}: {first.err[-600:]}"))
        return found


def _alive(group: int) -> list[int]:
    """The processes of a group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of = path.read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):  # it ended just now
            continue
        if int(of) == group and state not in "ZX":
            found.append(int(path.parent.name))
    return found


def sweepers(scene: Scene, rounds: int) -> list[Trial]:
    """Two and four, undisturbed and with one of them killed when a part of the work is done."""
    parts = [len(scene.changes) * (2 * k + 1) // (2 * rounds + 2) for k in range(rounds)]
    return [Sweepers(scene, n, killed) for part in parts for n in (2, 4) for killed in (None, part)]


def joblib_interruptions(scene: Scene) -> list[Trial]:
    """Kills and signals of the sweeper, of all its processes and of one worker."""
    n = len(scene.changes)  # of two processes with a run each
    sent = [
        *[("the sweeper", signal.SIGKILL, n * k // 10) for k in (0, 3, 6, 9)],
        *[("all", signal.SIGKILL, n * k // 10) for k in (2, 5, 8)],
        *[("the sweeper", number, n // 2) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)],
        *[("all", number, n // 2) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)],
        *[("a worker", signal.SIGKILL, 1 + n * k // 20) for k in (1, 4, 8)],
    ]
    return [JoblibInterrupted(scene, *case) for case in sent]
