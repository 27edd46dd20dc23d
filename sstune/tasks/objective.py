"""What an attack wants of a network: a loss to increase, and how far it has come, in one object."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from sstune.schema import Target


@dataclass(frozen=True)
class Goal:
    """What is asked of an attack.

    Args:
        loss: name of the loss that it increases, one of the task's; None: the task's first.
        target: which wrong answer it wants; None: any.
        seed: of random targets.
    """

    loss: str | None = None
    target: Target | None = None
    seed: int = 0


class Objective(ABC):
    """The loss of an attack on N samples, and its success, since both may depend on the same state."""

    @abstractmethod
    def loss(self, outputs: Tensor, images: Tensor, progress: float) -> Tensor:
        """(N,), to be increased; of each sample alone, never averaged, so that small ones do not vanish.

        Args:
            outputs: (N, ...), of the network for ``images``.
            images: (N, C, H, W), where the attack has come to.
            progress: share of the attack's steps that are done, in [0,1); for losses that change on the way.
        """

    @abstractmethod
    def achieved(self, outputs: Tensor) -> Tensor:
        """(N,) float32 in [0,1]: how much of what the attack wants it has; at 1 nothing is left to gain."""

    @abstractmethod
    def take(self, index: Tensor) -> Self:
        """The samples at ``index``, (n,) int64 on the device of the batch."""

    def is_adversarial(self, outputs: Tensor) -> Tensor:
        """(N,) bool, where the attack has succeeded."""
        return self.achieved(outputs) >= 1
