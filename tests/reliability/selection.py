"""At which changes of files, and when, a scene's command is cut short: the same each time."""

from __future__ import annotations

import random
import re
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

from children import Change
from scenes import Scene
from trials import DiskFull, KilledAtChange, KilledAtMoment, Stopped, Trial

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def spread(numbers: Sequence[int], n: int) -> list[int]:
    """``n`` of the numbers, from the first to the last, evenly."""
    if n >= len(numbers):
        return list(numbers)
    return [numbers[round(k * (len(numbers) - 1) / max(1, n - 1))] for k in range(n)]


def kills(scene: Scene, n: int) -> list[Trial]:
    """``n`` kills over the scene's changes of files; of a file's many writes in a row only two count."""
    chosen = spread(_telling(scene.changes), n)
    writes = [number for number in chosen if scene.changes[number - 1].operation == "write"]
    halves = set(writes[::2])
    return [KilledAtChange(scene, number, number in halves) for number in chosen]


def kills_at_moments(scene: Scene, n: int) -> list[Trial]:
    """``n`` kills at random moments, one in each n-th part of the time; the same ones each time."""
    generator = random.Random(scene.name)
    return [KilledAtMoment(scene, (k + generator.random()) / n) for k in range(n)]


def stops(scene: Scene, n: int) -> list[Trial]:
    """Each signal at ``n`` changes of files."""
    return [
        Stopped(scene, number, which) for which in STOPPING for number in spread(_telling(scene.changes), n)
    ]


def full_disks(scene: Scene, n: int | None = None) -> list[Trial]:
    """A full disk at each file that is written: where it is made, at its first, middle and last write and its
    sync the first time, at one of these in turn each further time. ``n``: so many of them."""
    seen: dict[str, int] = {}
    chosen: list[int] = []
    for name, numbers in _needing_room(scene.changes):
        time = seen[name] = seen.get(name, -1) + 1
        chosen += numbers if time == 0 else [numbers[time % len(numbers)]]
    return [DiskFull(scene, number) for number in spread(chosen, n or len(chosen))]


def _needing_room(changes: Sequence[Change]) -> Iterator[tuple[str, list[int]]]:
    """Every time that a file is written, or a directory made: its name, and the changes that need room."""
    paths = dict.fromkeys(change.path for change in changes)
    for path in paths:
        mine = [change for change in changes if change.path == path]
        made = [change.number for change in mine if change.operation in ("open", "mkdir")][:1]
        writes = [change.number for change in mine if change.operation == "write"]
        synced = [change.number for change in mine if change.operation == "fsync"][-1:]
        some = sorted({*writes[:1], *writes[len(writes) // 2 :][:1], *writes[-1:]})
        if mine[0].operation == "mkdir" or re.match(r"\.|lock$", Path(path).name):
            yield mine[0].name, [*made, *some, *synced]


def _telling(changes: Sequence[Change]) -> list[int]:
    """The numbers of all but the middle of many writes in a row."""
    operations = ["", *(change.operation for change in changes), ""]
    return [
        change.number
        for k, change in enumerate(changes)
        if operations[k : k + 3] != ["write", "write", "write"]
    ]
