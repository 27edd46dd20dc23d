"""What a network is asked to do. A rule knows nothing of tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from sstune.registry import Registry
from sstune.schema import TaskConfig


class Task(ABC):
    """A head's width, a loss to train on, and a judgement per sample."""

    outputs: int

    @abstractmethod
    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of a batch (a scalar)."""

    @abstractmethod
    def correct(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Which samples of a batch are right, (N,) bool."""


# Constructors ``(config, n_classes) -> Task``.
TASKS: Registry[Callable[..., Task]] = Registry("task.name")


def build(config: TaskConfig, n_classes: int) -> Task:
    """The task that ``config`` names, for ``n_classes`` classes.

    Raises:
        RequestError: unknown name.
    """
    return TASKS[config.name](config, n_classes)
