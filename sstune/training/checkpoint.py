"""The state of a training run between two steps: tensors and plain Python only."""

from __future__ import annotations

import copy
import io
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from sstune.attacks.memory import out_of_memory
from sstune.storage import read_state, write_bytes
from sstune.training.learner import Learner

_KEYS = {"identity", "progress", "network", "optimizer", "task", "rng", "rng_cuda"}


@dataclass
class Progress:
    """Where training stands, besides the network and the optimiser.

    ``epoch`` and ``step`` (within the epoch) name the next step. ``totals`` are the running sums of the
    epoch; ``history`` has one entry per finished epoch; ``best`` is the epoch chosen on validation with
    its network state, ``average`` the state of the averaged weights.
    """

    epoch: int = 0
    step: int = 0
    totals: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    alignment: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    average: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def save(path: Path, identity: str, progress: Progress, learner: Learner) -> None:
    """Write the whole state: a kill or a full disk leaves the previous checkpoint."""
    file = io.BytesIO()
    torch.save(
        {
            "identity": identity,
            "progress": {item.name: getattr(progress, item.name) for item in fields(progress)},
            **_state(learner),
        },
        file,
    )
    write_bytes(path, file.getbuffer())


def load(path: Path, identity: str, learner: Learner) -> Progress | None:
    """Restore the state saved at ``path``, all of it or nothing; None where there is none.

    What is damaged, or another run's, is set aside (:func:`sstune.storage.read_state`).
    """

    def restore(path: Path) -> Progress:
        state = torch.load(path, map_location="cpu", weights_only=True)
        _upgrade(state)
        _same_keys(state, _KEYS, "checkpoint")
        if state["identity"] != identity:
            raise ValueError(f"of run {str(state['identity'])[:12]}, not {identity[:12]}")
        progress = _progress(state["progress"])
        before = copy.deepcopy(_state(learner))
        try:
            _check(state, progress, before)
            _put(state, learner)
        except BaseException as error:
            if out_of_memory(error) or isinstance(error, torch.AcceleratorError):
                raise MemoryError(str(error)) from error  # the device failed; the file may be sound
            _put(before, learner)
            raise
        return progress

    return read_state(path, restore)


def _progress(values: dict[str, Any]) -> Progress:
    """What was saved of it; an incomplete one would pass for an earlier moment."""
    expected = vars(Progress())
    _same_keys(values, expected, "progress")
    for name, value in expected.items():
        if not isinstance(values[name], type(value)):
            raise ValueError(f"progress: {name} is a {type(values[name]).__name__}")
    return Progress(**values)


def _upgrade(state: Any) -> None:
    """Bring a checkpoint of a version that knew only accuracy, and no state of a task, up to date."""
    if not isinstance(state, dict) or "task" in state:
        return
    state["task"] = {}
    progress = state["progress"]
    if "correct" in progress["totals"]:
        progress["totals"]["score"] = progress["totals"].pop("correct")
    if best := progress["best"]:
        best["val_score"] = progress["history"][best["epoch"] - 1]["val_accuracy"]
        best["val"] = {"correct": best.pop("val_correct")}


def _state(learner: Learner) -> dict[str, Any]:
    return {
        "network": learner.network.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
        "task": learner.task.state_dict(),
        "rng": torch.get_rng_state(),
        "rng_cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def _put(state: dict[str, Any], learner: Learner) -> None:
    learner.network.load_state_dict(state["network"])
    learner.optimizer.load_state_dict(state["optimizer"])
    learner.task.load_state_dict(state["task"])
    torch.set_rng_state(state["rng"])
    if state["rng_cuda"] is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["rng_cuda"])


def _check(state: dict[str, Any], progress: Progress, own: dict[str, Any]) -> None:
    """Compare a state with that of the untrained network, for what loading it would not tell.

    Raises:
        ValueError: something is missing, of another type, or of another shape.
    """
    _same_shape(state["network"], own["network"], "network")
    _same_shape(state["task"], own["task"], "task")
    for group, its_own in zip(
        state["optimizer"]["param_groups"], own["optimizer"]["param_groups"], strict=True
    ):
        _same_keys(group, its_own, "optimizer")
    if len(progress.history) != progress.epoch:
        raise ValueError(f"{len(progress.history)} epochs in history, not {progress.epoch}")
    if progress.epoch:
        _same_keys(progress.best, {"epoch", "val_score", "val", "network"}, "best")
        _same_shape(progress.best["network"], own["network"], "best")
    if progress.average:
        averaged = {f"module.{name}": value for name, value in own["network"].items()}
        _same_shape(progress.average, {"n_averaged": torch.tensor(0), **averaged}, "average")


def _same_shape(found: dict[str, Any], expected: dict[str, Any], where: str) -> None:
    _same_keys(found, expected, where)
    for name, value in expected.items():
        shapes = [getattr(each, "shape", None) for each in (found[name], value)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{where}: {name} is {shapes[0]}, expected {shapes[1]}")


def _same_keys(found: Any, expected: Collection[str], where: str) -> None:
    if not isinstance(found, dict) or found.keys() != set(expected):
        differ = sorted(set(expected) ^ set(found), key=str) if isinstance(found, dict) else type(found)
        raise ValueError(f"{where}: wrong or missing {differ}")
