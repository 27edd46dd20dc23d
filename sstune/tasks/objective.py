"""The objective of an attack: its loss and its success criterion in one object."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from sstune.schema import Target


@dataclass(frozen=True)
class Goal:
    """The settings from which a task makes an objective.

    Args:
        loss: name of the loss to increase, one of the task's; None: the task's first.
        target: which wrong answer to reach; None: any.
        seed: of random targets.
        reference: of the network whose gradient the attack uses (:meth:`Task.reference`).
    """

    loss: str | None = None
    target: Target | None = None
    seed: int = 0
    reference: Any = None


class Objective(ABC):
    """Loss and success of an attack on N samples; both may depend on the same state."""

    @abstractmethod
    def loss(self, outputs: Tensor, images: Tensor, progress: float) -> Tensor:
        """(N,), to be increased; of each sample alone, never averaged, so that small ones do not vanish.

        Args:
            outputs: (N, ...), of the network for ``images``.
            images: (N, C, H, W), the current iterate.
            progress: share of the attack's steps that are done, in [0,1), for losses that change over time.
        """

    @abstractmethod
    def achieved(self, outputs: Tensor) -> Tensor:
        """(N,) float32 in [0,1]: how much of its aim the attack has achieved; 1 is full success."""

    @abstractmethod
    def take(self, index: Tensor) -> Self:
        """The samples at ``index``, (n,) int64 on the device of the batch."""

    def merit(self, outputs: Tensor) -> Tensor | None:
        """(N,), larger is better: by this an attack keeps a sample's best iterate. None: it keeps the first
        adversarial one, or the last."""
        return None

    def is_adversarial(self, outputs: Tensor) -> Tensor:
        """(N,) bool, where the attack has succeeded."""
        return self.achieved(outputs) >= 1
