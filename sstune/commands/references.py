"""The reference of a task, such as the codes of a retrieval database, kept in the run's directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from sstune import datasets
from sstune.commands.lineage import Source
from sstune.identity import semantic
from sstune.rules import frozen_feedback
from sstune.schema import RunConfig
from sstune.storage import file_digest
from sstune.tasks import Task


def write_reference(task: Task, reference: Any, data: datasets.Splits, weights: Path) -> None:
    """Keep ``reference`` beside ``weights``, the file of a run's network, for attacks on it."""
    if task.reference_file is not None:
        task.save_reference(weights.parent / task.reference_file, reference, data, file_digest(weights))


def kept_reference(task: Task, data: datasets.Splits, source: Source, config: RunConfig) -> Any:
    """The reference for the test split that ``source``'s run has kept.

    Args:
        config: how the images of ``data`` are read and normalised; digests of splits do not tell.

    Returns:
        None if there is none, or if it is damaged, or of other weights, images or settings.
    """
    if task.reference_file is None or source.config is None:
        return None
    if semantic(source.config)["dataset"] != semantic(config)["dataset"]:
        return None
    try:
        return task.load_reference(source.path.parent / task.reference_file, data, file_digest(source.path))
    except (OSError, ValueError):  # also where an earlier run was stopped before it wrote one
        return None


def reference_of(
    task: Task,
    network: nn.Module,
    data: datasets.Splits,
    device: torch.device,
    source: Source,
    config: RunConfig,
) -> Any:
    """The reference of ``network`` for the test split: as its run has kept it, or computed."""
    kept = kept_reference(task, data, source, config)
    if kept is not None:
        return kept
    with frozen_feedback(network):
        return task.reference(network, data, device)
