"""One fault each: a kill, a signal or a full disk, and the same command line again until it is done."""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

from children import FULL, KILL, KILL_HALFWAY, SIGNAL, Ended, Fault
from contents import content, contents, differences
from scenes import Scene

# What may be found amiss. lost: finished or saved work is gone, or is done again. different: not what an
# undisturbed run leaves, file by file. blocked: the same line does not come to its end. unclear: not the one
# line and the exit status that are promised.
KINDS = ("lost", "different", "blocked", "unclear")
UNUSED = ("checkpoint.pt", "previous.checkpoint.pt", "data.json")  # beside a row
SAVES = ("checkpoint.pt", "cell.npz", "outcomes.npz")  # each is put in its place once for each piece of work


class Complaint(NamedTuple):
    """``kind`` is one of :data:`KINDS`."""

    kind: str
    text: str


@dataclass(frozen=True)
class Trial(ABC):
    """A fault that a scene's command meets; ``fault`` is its line in the table."""

    fault: ClassVar[str]
    scene: Scene

    @property
    def command(self) -> str:
        return self.scene.name

    @abstractmethod
    def run(self, place: Path) -> list[Complaint]:
        """Carry it out below the empty folder ``place``; what is amiss."""


@dataclass(frozen=True)
class Interrupted(Trial):
    """The command is cut short once; then it is run again, which must end as if nothing had happened."""

    def run(self, place: Path) -> list[Complaint]:
        folder = self.scene.folder(place)
        first = self.cut_short(folder)
        return [*self.judge_first(first), *went_on(self.scene, folder, first)]

    @abstractmethod
    def cut_short(self, folder: Path) -> Ended:
        """Run the command up to its fault."""

    def judge_first(self, first: Ended) -> list[Complaint]:
        return []


@dataclass(frozen=True)
class KilledAtChange(Interrupted):
    """SIGKILL before the ``number``-th change of a file, or when half of that write is done."""

    fault = "killed at a change of a file"
    number: int
    halfway: bool = False

    def __str__(self) -> str:
        change = self.scene.changes[self.number - 1]
        return (
            f"{'halfway in' if self.halfway else 'before'} {change.operation} {self.number} of {change.name}"
        )

    def cut_short(self, folder: Path) -> Ended:
        fault = Fault(self.number, KILL_HALFWAY if self.halfway else KILL)
        return self.scene.start(folder, fault).wait()

    def judge_first(self, first: Ended) -> list[Complaint]:
        return [] if first.status == -signal.SIGKILL else [Complaint("unclear", f"no kill: {first}")]


@dataclass(frozen=True)
class KilledAtMoment(Interrupted):
    """SIGKILL at a moment, as a part of the time that the whole takes."""

    fault = "killed at a random moment"
    part: float

    def __str__(self) -> str:
        return f"after {self.part:.0%} of the time"

    def cut_short(self, folder: Path) -> Ended:
        child = self.scene.start(folder)
        return child.signal_after(self.part * self.scene.undisturbed.seconds, signal.SIGKILL)


@dataclass(frozen=True)
class Stopped(Interrupted):
    """SIGTERM, SIGINT or SIGHUP at the ``number``-th change of a file."""

    fault = "stopped by a signal"
    number: int
    signal: signal.Signals

    def __str__(self) -> str:
        change = self.scene.changes[self.number - 1]
        return f"{self.signal.name} at {change.operation} {self.number} of {change.name}"

    def cut_short(self, folder: Path) -> Ended:
        fault = Fault(self.number, SIGNAL + self.signal)
        return self.scene.start(folder, fault).wait()

    def judge_first(self, first: Ended) -> list[Complaint]:
        if first.status == 0 and not first.errors:  # it came when all was done
            return []
        (*_, line) = first.errors or [""]
        if first.status == 128 + self.signal and line.startswith("sstune: ") and len(first.errors) == 1:
            return []
        return [Complaint("unclear", f"status {first.status}, {first.err!r}")]


@dataclass(frozen=True)
class DiskFull(Interrupted):
    """From the ``number``-th change of a file on there is no room; then there is again."""

    fault = "disk full"
    number: int

    def __str__(self) -> str:
        change = self.scene.changes[self.number - 1]
        return f"from {change.operation} {self.number} of {change.name} on"

    def cut_short(self, folder: Path) -> Ended:
        fault = Fault(self.number, FULL)
        return self.scene.start(folder, fault).wait()

    def judge_first(self, first: Ended) -> list[Complaint]:
        if first.status == 0 and not first.errors:  # nothing that was left to do needed room
            return []
        lines = first.errors
        failed = {change.name for change in first.changes if change.number >= self.number} - {"failure.json"}
        named = [
            line for line in lines if "no space left" in line.lower() and any(name in line for name in failed)
        ]
        short = all(line.startswith("sstune: ") and len(line) <= 200 for line in lines)
        expected = named and short and (len(lines) == 1 or "-m" in self.scene.line)
        if first.status == 1 and expected:
            return []
        return [Complaint("unclear", f"status {first.status}, {first.err[-600:]!r}")]


def went_on(scene: Scene, folder: Path, first: Ended) -> list[Complaint]:
    """Judge what a cut left, run the same line again, and judge where that ends."""
    found = [Complaint("lost", text) for text in _gone(scene, folder)]
    again = scene.start(folder).wait()
    if again.status or "Traceback" in again.err:
        return [*found, Complaint("blocked", f"status {again.status}: {again.err[-600:]}")]
    found += [Complaint("lost", text) for text in done_again(scene, first, again)]
    unused = {f"{run}/{name}" for run in finished(first) for name in UNUSED}
    return found + [
        Complaint("different", text)
        for text in differences(contents(folder), scene.after)
        if not (text.startswith("leftover") and any(text.endswith(name) for name in unused))
    ]


def finished(ended: Ended) -> set[str]:
    """The folders of the runs that it finished. A kill right behind may leave what is ``UNUSED``."""
    return {name.partition("/")[0] for name in ended.completed("result.json")}


def done_again(scene: Scene, first: Ended, again: Ended) -> Iterator[str]:
    """What was saved, and yet done a second time. Under ``force=true`` what is finished is made anew."""
    over = finished(first)
    stopped = int(first.status > 128)  # a signal makes a run save once more
    saves = first.completed(*SAVES) + again.completed(*SAVES)
    for name, n in scene.undisturbed.completed(*SAVES).items():
        if name.partition("/")[0] not in over and saves[name] > n + stopped:
            yield f"{name} was saved {saves[name]} times instead of {n}"
    if "force=true" not in scene.line:
        yield from (
            f"{run} was made again" for run in over if again.completed("result.json")[f"{run}/result.json"]
        )


def _gone(scene: Scene, folder: Path) -> Iterator[str]:
    """What was there before and is neither as it was nor as it is to become.

    What ``force=true`` replaces lies beside as ``previous.NAME`` until the new one is there.
    """
    for path in sorted(path for path in scene.before.rglob("*") if path.is_file()):
        name = path.relative_to(scene.before)
        old, new = content(path, scene.before), scene.after.get(str(name))
        places = [folder / name, folder / name.with_name(f"previous.{name.name}")]
        found = [content(place, folder) for place in places if place.exists()]
        if name.name not in ("lock", "config.yaml") and not {old, new} & {*found}:
            yield f"{name} is gone" if not found else f"{name} is damaged"
