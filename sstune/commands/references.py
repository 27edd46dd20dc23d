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


def reference_of(
    task: Task,
    network: nn.Module,
    data: datasets.Splits,
    device: torch.device,
    source: Source,
    config: RunConfig,
) -> Any:
    """The reference of ``network`` for the test split: as its run has kept it, or computed.

    Args:
        source: the run of the network.
        config: how the images of ``data`` are read; a kept reference is of images that were read, and
            normalised, as by the network's own run.
    """
    if task.reference_file is not None and source.config is not None and _reads_alike(source.config, config):
        try:
            path = source.path.parent / task.reference_file
            return task.load_reference(path, data, file_digest(source.path))
        except (OSError, ValueError):  # of other data or settings; or an earlier run was stopped before it
            pass
    with frozen_feedback(network):
        return task.reference(network, data, device)


def _reads_alike(one: RunConfig, other: RunConfig) -> bool:
    """Whether the images are read and normalised alike; digests of splits do not tell."""
    return bool(semantic(one)["dataset"] == semantic(other)["dataset"])
