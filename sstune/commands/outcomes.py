"""A run's ``outcomes.npz``: what became of each sample, saved while the attack goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sstune.attacks import Outcome
from sstune.interrupt import StopFlag
from sstune.packing import pack
from sstune.runs import atomic_write


class Outcomes:
    """The outcome of each of a run's cells, by a key such as ``"rule 8/255"``.

    In the file: ``samples``, indices in the test split; ``clean``, (n,) bool; and for every cell the fields
    of :class:`Outcome` as ``KEY/FIELD``.
    """

    def __init__(self, path: Path, samples: Tensor, clean: Tensor) -> None:
        self.path = path
        self.samples = samples
        self.clean = clean
        self.cells: dict[str, Outcome] = {}
        if path.exists():
            with np.load(path) as saved:
                if np.array_equal(saved["samples"], samples) and np.array_equal(saved["clean"], clean):
                    self.cells = _cells(dict(saved))

    def get(self, key: str) -> Outcome | None:
        """As far as the cell came."""
        return self.cells.get(key)

    def save(self, key: str, outcome: Outcome, stop: StopFlag) -> None:
        """Save the state of a cell; a crash in the middle leaves the file as it was.

        Raises:
            Stopped: a signal came; everything is saved.
        """
        self.cells[key] = outcome
        arrays: dict[str, Any] = {"samples": self.samples.numpy(), "clean": self.clean.numpy()}
        for name, cell in self.cells.items():
            arrays |= {f"{name}/{field}": value for field, value in cell.arrays().items()}
        with atomic_write(self.path) as temporary:
            np.savez_compressed(temporary, **arrays)
        if stop:
            raise stop.stop()


def _cells(arrays: dict[str, Any]) -> dict[str, Outcome]:
    fields: dict[str, dict[str, Any]] = {}
    for name, value in arrays.items():
        key, _, field = name.rpartition("/")
        if key:
            fields.setdefault(key, {})[field] = value
    return {key: Outcome.from_arrays(found) for key, found in fields.items() if "broken" in found}


def summary(outcome: Outcome) -> dict[str, Any]:
    """A cell for a row's measurement.

    ``outcomes``: which samples stayed right, packed. ``found``: ``[effort, samples]`` pairs, how many broke
    after how many gradient steps or queries, where the attack says so.
    """
    known = outcome.effort[outcome.broken & (outcome.effort >= 0)].numpy()
    efforts, counts = np.unique(known, return_counts=True)
    return {
        "outcomes": pack(outcome.right.numpy()),
        "found": [[int(effort), int(count)] for effort, count in zip(efforts, counts, strict=True)],
        "seconds": outcome.seconds,
    }
