"""Judge a network on a split."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sstune.arithmetic import check_exact
from sstune.datasets import Split, batches
from sstune.finite import check_outputs_finite
from sstune.rules import eval_mode
from sstune.tasks.registry import Task

BATCH_SIZE = 128  # larger ones outgrow a CPU's caches


@dataclass(frozen=True)
class Judgement:
    """Per sample: whether it is right, (N,) bool on the CPU; and the mean loss over the split."""

    correct: Tensor
    loss: float

    @property
    def n_correct(self) -> int:
        return int(self.correct.sum())


@torch.no_grad()
def evaluate(network: nn.Module, task: Task, split: Split, device: torch.device) -> Judgement:
    """Evaluate in float32 and eval mode; the network's mode is restored.

    Raises:
        FloatingPointError: an output is NaN or infinite.
        RuntimeError: torch would compute float32 products in another precision.
    """
    check_exact(device)
    correct, losses, finite = [], [], []
    with eval_mode(network):
        for images, labels in batches(split, BATCH_SIZE, device):
            outputs = network(images)
            correct.append(task.correct(outputs, labels))
            losses.append(task.loss(outputs, labels) * len(labels))
            finite.append(torch.isfinite(outputs).all(1))
    check_outputs_finite(torch.cat(finite), network)
    return Judgement(torch.cat(correct).cpu(), float(torch.stack(losses).sum()) / len(split))
