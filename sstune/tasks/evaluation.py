"""Evaluate a network on a split."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sstune.arithmetic import check_exact
from sstune.datasets import Split, batches
from sstune.finite import check_outputs_finite
from sstune.modes import eval_mode
from sstune.statistics import bootstrap_interval
from sstune.tasks.score import Score
from sstune.tasks.task import Task

BATCH_SIZE = 128  # larger ones outgrow a CPU's caches


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Predictions for a split, (N, ...) on the CPU, their score, and the mean loss."""

    predictions: Tensor
    score: Score
    loss: float


@torch.no_grad()
def evaluate(
    network: nn.Module, task: Task, split: Split, device: torch.device, reference: Any = None
) -> Evaluation:
    """Evaluate in float32 and eval mode; the network's mode is restored.

    Raises:
        FloatingPointError: an output is NaN or infinite.
        RuntimeError: torch would compute float32 products in another precision.
    """
    predictions, loss = predict(network, task, split, device)
    assert loss is not None
    return Evaluation(predictions, task.score(predictions, split.targets.cpu(), reference), loss)


@torch.no_grad()
def predict(
    network: nn.Module, task: Task, split: Split, device: torch.device, with_loss: bool = True
) -> tuple[Tensor, float | None]:
    """Predictions, (N, ...) on the CPU, and the mean loss if asked; as :func:`evaluate`."""
    check_exact(device)
    predictions, losses, finite = [], [], []
    with eval_mode(network):
        for batch in batches(split, BATCH_SIZE, device):
            outputs = network(batch.images)
            predictions.append(task.predict(outputs))
            finite.append(torch.isfinite(outputs).flatten(1).all(1))
            if with_loss:
                losses.append(task.loss(outputs, batch) * len(batch))
    check_outputs_finite(torch.cat(finite), network)
    loss = float(torch.stack(losses).sum()) / len(split) if with_loss else None
    return torch.cat(predictions).cpu(), loss


def with_interval(
    score: Score, task: Task, predictions: Tensor, targets: Tensor, reference: Any = None
) -> Score:
    """Add a 95 % bootstrap interval to a score whose samples have no value of their own.

    The whole set is scored again for each resample, so this is for figures that are reported.
    """
    if score.each is not None or score.interval is not None:
        return score

    def resampled(index: npt.NDArray[np.int64]) -> float:
        chosen = torch.from_numpy(index)
        return task.score(predictions[chosen], targets[chosen], reference).value

    return replace(score, interval=bootstrap_interval(resampled, score.n))
