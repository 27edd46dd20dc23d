"""What a network is asked to do. Rules know nothing of tasks; everything else knows only this interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sstune.datasets import Batch, Splits
from sstune.registry import Registry
from sstune.schema import TaskConfig
from sstune.tasks.objective import Goal, Objective
from sstune.tasks.score import Score


class Task(ABC):
    """A head's width, a loss to train on, a metric, and what an attack may want.

    Attributes:
        outputs: units of the head.
        metric: name of the metric that :meth:`score` computes.
        objectives: names of the losses that an attack may increase; the first is the default.
    """

    outputs: int
    metric: str
    objectives: Sequence[str]

    @abstractmethod
    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Mean loss of a batch, a scalar, from the network's ``outputs``, (N, ...)."""

    @abstractmethod
    def predict(self, outputs: Tensor) -> Tensor:
        """What the network says of each sample, (N, ...): all that :meth:`score` needs to know of outputs."""

    @abstractmethod
    def score(self, predictions: Tensor, targets: Tensor, reference: Any = None) -> Score:
        """The metric of a set of samples.

        Args:
            predictions: (N, ...) on the CPU, of :meth:`predict`.
            targets: (N, ...) on the CPU.
            reference: of :meth:`reference`.
        """

    @abstractmethod
    def objective(self, batch: Batch, goal: Goal, clean_outputs: Callable[[], Tensor]) -> Objective:
        """What an attack on ``batch`` wants.

        Args:
            clean_outputs: computes the network's outputs for the batch as it is; not every objective asks.
        """

    def batch_scores(self, outputs: Tensor, batch: Batch) -> Tensor | None:
        """The score of each sample of a training batch, (N,), on its device, for the history; None where a
        sample has none."""
        return None

    def attackable(self, score: Score) -> Tensor:
        """(N,) bool: which samples an attack can gain anything on, from the score without an attack."""
        return torch.ones(score.n, dtype=torch.bool)

    def reference(self, network: nn.Module, splits: Splits, device: torch.device) -> Any:
        """What predictions are compared with besides targets, computed once for a network: for retrieval, the
        codes of the database. None: nothing."""
        return None

    def begin_epoch(self, epoch: int, epochs: int) -> None:  # noqa: B027  # most tasks have nothing to do
        """Called before each epoch of training (0-based), for losses that change on the way."""

    def state_dict(self) -> dict[str, Tensor]:
        """What the loss remembers from batch to batch; saved with every checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:  # noqa: B027
        """Restore what :meth:`state_dict` gave."""


# Constructors ``(config, n_classes) -> Task``.
TASKS: Registry[Callable[..., Task]] = Registry("task.name")


def build(config: TaskConfig, n_classes: int) -> Task:
    """The task that ``config`` names, for ``n_classes`` classes.

    Raises:
        RequestError: unknown name.
    """
    return TASKS[config.name](config, n_classes)
