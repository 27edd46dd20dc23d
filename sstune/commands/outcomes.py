"""The outcomes of a run's attacks for each sample, saved while the attack runs."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sstune.attacks import Outcome, Victim
from sstune.interrupt import StopFlag
from sstune.packing import pack, pack_values
from sstune.row import Details
from sstune.storage import read_state, write_bytes
from sstune.tasks import Score

Arrays = dict[str, npt.NDArray[Any]]
# Fields of outcomes in files of earlier versions, and their present names.
_EARLIER_NAMES = {"part": "stage", "effort": "steps_to_success"}


class Outcomes:
    """The outcome of each of a run's cells, by a key such as ``"rule 8/255"``.

    Finished cells are in ``outcomes.npz``. The cell in progress is in ``cell.npz``, which is written after
    each batch. Both hold ``identity`` of the run; ``samples``, indices in the test split; ``clean``, (n,)
    bool, the samples that are attacked; and of every cell the fields of :class:`Outcome` as ``KEY/FIELD``,
    with ``right`` and ``broken``, its ``robust`` and ``success``. A file of another run or of other samples
    is set aside.
    """

    def __init__(self, directory: Path, identity: str, victim: Victim) -> None:
        self.finished_path = directory / "outcomes.npz"
        self.cell_path = directory / "cell.npz"
        self.victim = victim
        self.head: Arrays = {
            "identity": np.array(identity),
            "samples": victim.samples.numpy(),
            "clean": victim.clean.numpy(),
        }
        self.cells = read_state(self.finished_path, self._read) or {}
        self.in_progress = read_state(self.cell_path, self._read) or {}
        if self.in_progress.keys() <= self.cells.keys():  # a kill came before the file was removed
            self.cell_path.unlink(missing_ok=True)

    def get(self, key: str) -> Outcome | None:
        """The outcome of a cell, finished or in progress; None if it has not started."""
        return self.cells.get(key, self.in_progress.get(key))

    def save(self, key: str, outcome: Outcome, stop: StopFlag) -> None:
        """Save a cell in progress; a crash in the middle leaves the file as it was.

        Raises:
            Stopped: a signal came; everything is saved.
        """
        self.in_progress = {key: outcome}
        self._write(self.cell_path, self.in_progress)
        if stop:
            raise stop.stop()

    def finish(self, key: str, outcome: Outcome) -> None:
        """Save a finished cell; the cells stay in the order in which they were finished."""
        self.cells[key] = outcome
        self._write(self.finished_path, self.cells)
        self.cell_path.unlink(missing_ok=True)

    def _write(self, path: Path, cells: Mapping[str, Outcome]) -> None:
        arrays = dict(self.head)
        for name, cell in cells.items():
            shown = {"right": cell.robust.numpy(), "broken": cell.success.numpy()}
            arrays |= {f"{name}/{field}": value for field, value in (cell.arrays() | shown).items()}
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        write_bytes(path, file.getbuffer())

    def _read(self, path: Path) -> dict[str, Outcome]:
        """The cells of a file.

        Raises:
            ValueError: it is not of this run, or a cell is not whole.
        """
        with np.load(path) as saved:
            arrays = dict(saved)
        arrays.setdefault("identity", self.head["identity"])  # earlier versions did not say
        for name, own in self.head.items():
            if not np.array_equal(arrays.pop(name), own):
                raise ValueError(f"another {name} than this run's")
        cells: dict[str, Arrays] = {}
        for name, value in arrays.items():
            key, _, field = name.rpartition("/")
            cells.setdefault(key, {})[field] = value
        for key, cell in cells.items():
            self._upgrade(cell)
            if not self._whole(cell):
                raise ValueError(f"{key} is not whole")
        return {key: Outcome.from_arrays(cell) for key, cell in cells.items()}

    def _upgrade(self, cell: Arrays) -> None:
        """Bring a cell of a version that knew classification only up to date."""
        right, broken = cell.pop("right"), cell.pop("broken")
        cell.setdefault("zero_gradients", np.full(len(right), -1, np.float32))
        for earlier, name in _EARLIER_NAMES.items():
            if earlier in cell:
                cell[name] = cell.pop(earlier)
        if not cell.keys() & {"achieved", "predictions"}:
            cell["achieved"] = np.where(broken, 1, np.where(right, 0, 0.5)).astype(np.float32)
            cell["predictions"] = np.where(right, self.victim.predictions[: len(right)], -1)

    def _whole(self, cell: Arrays) -> bool:
        """Whether a cell has the fields of an outcome, of their types, each of as many samples.

        Of an audit, a cell may be of some of the samples only.
        """
        n = len(cell["achieved"])
        victim = self.victim
        model = Outcome.begin(victim.clean[:n], victim.predictions[:n]).arrays()
        return cell.keys() == model.keys() and all(
            cell[field].dtype == like.dtype and (cell[field].shape == like.shape or field == "images")
            for field, like in model.items()
        )


def summary(victim: Victim, outcome: Outcome) -> Details:
    """The keys of a measurement: the score, the score of each sample, and the time.

    ``found``: pairs ``[steps, samples]``, the number of samples on which the attack succeeded after so many
    gradient steps or queries, if it reports them.
    """
    score = victim.measured(outcome.predictions)
    known = outcome.steps_to_success[outcome.success & (outcome.steps_to_success >= 0)].numpy()
    efforts, counts = np.unique(known, return_counts=True)
    return {
        **score.fields(victim.task.metric),
        **per_sample(score),
        "found": [[int(effort), int(count)] for effort, count in zip(efforts, counts, strict=True)],
        "seconds": outcome.seconds,
        **_zero_gradients(victim, outcome),
    }


def _zero_gradients(victim: Victim, outcome: Outcome) -> Details:
    """The share of gradients that were zero, over the attacked samples; nothing if it is unknown."""
    known = outcome.zero_gradients[victim.clean & (outcome.zero_gradients >= 0)]
    return {"zero_gradients": float(known.mean())} if len(known) else {}


def per_sample(score: Score) -> Details:
    """The score of each sample, packed: ``outcomes`` where samples are counted, ``values`` where each has one
    of its own, nothing where only a set has one."""
    if score.each is None:
        return {}
    if score.correct is not None:
        return {"outcomes": pack(score.each.numpy())}
    return {"values": pack_values(score.each.numpy())}
