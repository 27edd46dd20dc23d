"""State files damaged in six ways, under an unfinished run and under what a command starts from."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from children import KILL, Fault
from contents import contents, differences
from scenes import Scene
from trials import SAVES, Complaint, Trial, done_again

FOLDER = "a folder in its place"


def _half(path: Path) -> None:
    """Cut within a line: rows.jsonl cut at the end of one is a shorter file, and as good as any."""
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(half[:-2] if half.endswith((b"}", b"\n")) else half)


def _flipped(path: Path) -> None:
    """All bits of 16 bytes in the middle, or of as many as there are."""
    held = bytearray(path.read_bytes())
    middle = len(held) // 2
    for k in range(max(0, middle - 8), min(len(held), middle + 8)):
        held[k] ^= 0xFF
    path.write_bytes(held)


def _without_a_key(path: Path) -> None:
    """The last key of the mapping that the file holds, the last column of a table, the last array."""
    if path.suffix == ".pt":
        state = torch.load(path, weights_only=True)
        state.popitem()
        torch.save(state, path)
    elif path.suffix == ".npz":
        with np.load(path) as arrays:
            found = dict(arrays)
        del found[next(name for name in found if name.endswith("/broken"))]
        np.savez_compressed(path, **found)
    elif path.suffix == ".csv":
        lines = list(csv.reader(io.StringIO(path.read_text())))
        path.write_text("".join(",".join(line[:-1]) + "\n" for line in lines))
    elif path.suffix == ".yaml":
        content = yaml.safe_load(path.read_text())
        del content["dataset"]
        path.write_text(yaml.safe_dump(content))
    else:
        row, *rest = (
            path.read_text().splitlines(keepends=True) if path.suffix == ".jsonl" else [path.read_text()]
        )
        content = json.loads(row)
        content.pop("config", None) or content.popitem()
        path.write_text(json.dumps(content) + "\n" + "".join(rest))


def _another_type(path: Path) -> None:
    """What is no such file, but a valid one of its format: a list instead of a mapping."""
    if path.suffix == ".pt":
        torch.save([1, 2, 3], path)
    elif path.suffix == ".npz":
        with path.open("wb") as file:
            np.save(file, np.arange(3))
    else:
        path.write_text("[1, 2, 3]\n")


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("something")


WAYS: dict[str, Callable[[Path], None]] = {
    "empty": lambda path: path.write_bytes(b""),
    "half": _half,
    "bits flipped": _flipped,
    "a key missing": _without_a_key,
    "another type": _another_type,
    FOLDER: _folder,
}


def _damaged(path: Path, way: str) -> bytes:
    """Damage the file; what it then holds, or the file in the folder that took its place."""
    WAYS[way](path)
    return (path / "inside" if path.is_dir() else path).read_bytes()


@dataclass(frozen=True)
class StateDamaged(Trial):
    """A file of an unfinished run: it is set aside, and the run ends as if nothing had happened."""

    fault = "state file damaged"
    number: int
    name: str
    way: str

    def __str__(self) -> str:
        return f"{self.name}: {self.way}"

    def run(self, place: Path) -> list[Complaint]:
        folder = self.scene.folder(place)
        first = self.scene.start(folder, Fault(self.number, KILL)).wait()
        (run,) = [path.parent for path in folder.glob("runs/*/*/lock") if path.read_bytes()]
        if self.name == "failure.json":
            (run / self.name).write_text('{"error": "OSError: no space", "traceback": "lines"}')
        held = _damaged(run / self.name, self.way)
        again = self.scene.start(folder).wait()
        if again.status or "Traceback" in again.err:
            return [Complaint("blocked", f"status {again.status}: {again.err[-600:]}")]
        found = contents(folder)
        aside = [name for name in found.keys() - self.scene.after.keys() if self._is_aside(name)]
        complaints = [
            Complaint("different", text)
            for text in differences(found, self.scene.after)
            if text not in [f"leftover {name}" for name in aside[:1]]
        ]
        if self.name not in SAVES:
            return complaints + [Complaint("lost", text) for text in done_again(self.scene, first, again)]
        if held not in [(folder / name).read_bytes() for name in aside]:
            complaints.append(Complaint("lost", "what was damaged is not kept under another name"))
        said = [line for line in again.errors if self.name in line]
        if len(again.errors) != 1 or len(said) != 1 or len(said[0]) > 200:
            complaints.append(Complaint("unclear", f"not in one line: {again.err[-600:]!r}"))
        return complaints

    def _is_aside(self, name: str) -> bool:
        """Whether a file is the damaged one, or lies in what took its place, under another name."""
        return any(part.endswith(f".{self.name}") and part[0] != "." for part in Path(name).parts)


@dataclass(frozen=True)
class SourceDamaged(Trial):
    """A file of what a command starts from, or reports: it is refused in one line that names the file, and
    nothing is made; or what is damaged decides nothing, and the result is the same."""

    fault = "source file damaged"
    path: str
    way: str
    statuses: tuple[int, ...] = (2,)

    def __str__(self) -> str:
        return f"{self.path}: {self.way}"

    def run(self, place: Path) -> list[Complaint]:
        folder = self.scene.folder(place)
        _damaged(folder / self.path, self.way)
        before = contents(folder)
        ended = self.scene.start(folder).wait()
        if ended.status == 0:
            mine = f"{self.path}/" if self.way == FOLDER else self.path
            found = [contents(folder), dict(self.scene.after)]
            for each in found:
                for name in [name for name in each if name.startswith(mine)]:
                    del each[name]
            return [Complaint("different", text) for text in differences(*found)]
        complaints = [Complaint("lost", text) for text in differences(contents(folder), before)]
        (line,) = ended.errors if len(ended.errors) == 1 else [""]
        clear = line.startswith("sstune: ") and Path(self.path).name in line and len(line) <= 200
        if ended.status not in self.statuses or not clear:
            complaints.append(Complaint("unclear", f"status {ended.status}, {ended.err[-600:]!r}"))
        return complaints


@dataclass(frozen=True)
class Repaired(Trial):
    """A source's damaged file is put back: the refused command then runs."""

    fault = "source file damaged"
    path: str

    def __str__(self) -> str:
        return f"{self.path}: put back"

    def run(self, place: Path) -> list[Complaint]:
        folder = self.scene.folder(place)
        _damaged(folder / self.path, "half")
        self.scene.start(folder).wait()
        shutil.copy2(self.scene.before / self.path, folder / self.path)
        again = self.scene.start(folder).wait()
        if again.status:
            return [Complaint("blocked", f"status {again.status}: {again.err[-600:]}")]
        return [Complaint("different", text) for text in differences(contents(folder), self.scene.after)]


STATE = {
    "train": ("checkpoint.pt", "history.csv", "alignment.csv", "config.yaml", "lock", "failure.json"),
    "finetune": ("checkpoint.pt", "history.csv", "alignment.csv", "config.yaml", "lock", "failure.json"),
    "attack": ("cell.npz", "outcomes.npz", "config.yaml", "lock", "failure.json"),
    "audit": ("cell.npz", "outcomes.npz", "config.yaml", "lock", "failure.json"),
}


def state_damages(scene: Scene) -> list[Trial]:
    """Every state file that the scene's run has in the middle of its work, in every way."""
    # killed before a cell in progress becomes a finished one, or before a further checkpoint
    saves = [
        change.number
        for change in scene.changes
        if change.operation == "rename" and change.name in ("checkpoint.pt", "outcomes.npz")
    ]
    middle = saves[len(saves) * 2 // 3]
    return [
        StateDamaged(scene, middle, name, way)
        for name in STATE[scene.name]
        for way in WAYS
        if not (name == "lock" and way == "a key missing")  # it has none
    ]


def source_damages(scene: Scene) -> list[Trial]:
    """Every file of the runs that the scene's command starts from, or of the rows that it reports."""
    if scene.name == "report":
        attacked = min(scene.before.glob("runs/attack/*/result.json"))
        names = [str(attacked.relative_to(scene.before)), "other/rows.jsonl"]
        statuses: tuple[int, ...] = (1, 2)
    else:
        (run,) = scene.before.glob("runs/train/*-s1-*" if scene.name == "audit" else "runs/train/*-s0-*")
        names = [
            str((run / name).relative_to(scene.before)) for name in ("result.json", "model.pt", "config.yaml")
        ]
        statuses = (2,)
    damaged: list[Trial] = [SourceDamaged(scene, name, way, statuses) for name in names for way in WAYS]
    return damaged + [Repaired(scene, name) for name in names]
