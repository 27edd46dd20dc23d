"""The interface of a task. Rules do not depend on tasks; all other code uses this interface only."""

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
    """Defines the width of the head, the training loss, the metric, and the objectives of attacks.

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
        """Predictions, (N, ...), from the network's outputs; :meth:`score` needs nothing else of them."""

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
        """The objective of an attack on ``batch``.

        Args:
            clean_outputs: computes the outputs for the batch as it is; only some objectives call it.
        """

    def batch_scores(self, outputs: Tensor, batch: Batch) -> Tensor | None:
        """The score of each sample of a training batch, (N,), on its device, for the history; None if single
        samples have no score."""
        return None

    def attackable(self, score: Score) -> Tensor:
        """(N,) bool, the samples to attack, given the score without an attack."""
        return torch.ones(score.n, dtype=torch.bool)

    def reference(self, network: nn.Module, splits: Splits, device: torch.device) -> Any:
        """Data that :meth:`score` needs besides targets, computed once for a network, such as the codes of a
        retrieval database; None if it needs none."""
        return None

    def begin_epoch(self, epoch: int, epochs: int) -> None:  # noqa: B027  # most tasks have nothing to do
        """Called before each epoch of training (0-based), for losses that change on the way."""

    def state_dict(self) -> dict[str, Tensor]:
        """State of the loss between batches; it is part of every checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:  # noqa: B027
        """Restore the state that :meth:`state_dict` returned."""


# Constructors ``(config, n_classes) -> Task``.
TASKS: Registry[Callable[..., Task]] = Registry("task.name")


def build(config: TaskConfig, n_classes: int) -> Task:
    """The task that ``config`` names, for ``n_classes`` classes.

    Raises:
        RequestError: unknown name.
    """
    return TASKS[config.name](config, n_classes)
