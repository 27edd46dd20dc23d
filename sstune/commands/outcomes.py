"""A run's ``outcomes.npz``: what became of each sample, saved while the attack goes on."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sstune.attacks import Outcome
from sstune.interrupt import StopFlag
from sstune.packing import pack
from sstune.storage import read_state, write_bytes


class Outcomes:
    """The outcome of each of a run's cells, by a key such as ``"rule 8/255"``.

    In the file: ``identity`` of the run; ``samples``, indices in the test split; ``clean``, (n,) bool; and
    for every cell the fields of :class:`Outcome` as ``KEY/FIELD``. What another run left, or an attack on
    other samples, is set aside.
    """

    def __init__(self, path: Path, identity: str, samples: Tensor, clean: Tensor) -> None:
        self.path = path
        self.head = {"identity": np.array(identity), "samples": samples.numpy(), "clean": clean.numpy()}
        self.cells: dict[str, Outcome] = read_state(path, self._read) or {}

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
        cells: dict[str, dict[str, Any]] = {}
        for name, value in arrays.items():
            key, _, field = name.rpartition("/")
            cells.setdefault(key, {})[field] = value
        for key, cell in cells.items():
            if not _whole(cell):
                raise ValueError(f"{key} is not whole")
        return {key: Outcome.from_arrays(cell) for key, cell in cells.items()}

    def get(self, key: str) -> Outcome | None:
        """As far as the cell came."""
        return self.cells.get(key)

    def save(self, key: str, outcome: Outcome, stop: StopFlag) -> None:
        """Save the state of a cell; a crash in the middle leaves the file as it was.

        Raises:
            Stopped: a signal came; everything is saved.
        """
        self.cells[key] = outcome
        arrays: dict[str, Any] = dict(self.head)
        for name, cell in self.cells.items():
            arrays |= {f"{name}/{field}": value for field, value in cell.arrays().items()}
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)
        write_bytes(self.path, file.getbuffer())
        if stop:
            raise stop.stop()


def _whole(cell: dict[str, Any]) -> bool:
    """Whether the arrays of a cell have the fields of an outcome, of their types, on as many samples each."""
    n = len(cell["right"])
    model = Outcome.begin(torch.zeros(n, dtype=torch.bool)).arrays()
    return cell.keys() == model.keys() and all(
        cell[field].dtype == like.dtype and (cell[field].shape == like.shape or field == "images")
        for field, like in model.items()
    )


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
