"""The reference of a task, such as the codes of a retrieval database, kept in the run's directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from sstune import datasets
from sstune.commands.lineage import Source
from sstune.storage import file_digest
from sstune.tasks import Task


def write_reference(task: Task, reference: Any, data: datasets.Splits, weights: Path) -> None:
    """Keep ``reference`` beside ``weights``, the file of a run's network, for attacks on it."""
    if task.reference_file is not None:
        task.save_reference(weights.parent / task.reference_file, reference, data, file_digest(weights))


def kept_reference(task: Task, data: datasets.Splits, source: Source) -> Any:
    """The reference for the test split that ``source``'s run has kept; None if there is none, or if it is of
    other weights, data or settings, or damaged."""
    if task.reference_file is not None and source.config is not None:
        try:
            path = source.path.parent / task.reference_file
            return task.load_reference(path, data, file_digest(source.path))
        except (OSError, ValueError):  # also where an earlier run was stopped before it wrote one
            pass
    return None


def reference_of(
    task: Task, network: nn.Module, data: datasets.Splits, device: torch.device, source: Source
) -> Any:
    """The reference of ``network`` for the test split: as its run has kept it, or computed."""
    kept = kept_reference(task, data, source)
    return task.reference(network, data, device) if kept is None else kept
