"""What an attack is: hyper-parameters at construction; a batch, an objective and eps at the call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from sstune.attacks.attacked_model import AttackedModel
from sstune.copying import to_device
from sstune.datasets import Batch
from sstune.registry import Registry
from sstune.schema import AttackConfig
from sstune.tasks import Goal, Objective

NEVER = -1


@dataclass(frozen=True)
class AttackResult:
    """What came of a batch.

    Args:
        images: (N, C, H, W) in [0,1] and in the ball.
        steps_to_success: (N,) gradient steps or queries after which the attack succeeded on a sample; -1
            where it never did, or does not report it.
    """

    images: Tensor
    steps_to_success: Tensor

    @classmethod
    def of_unknown_steps(cls, images: Tensor) -> AttackResult:
        """From an attack that does not say after how many steps or queries it succeeded."""
        return cls(images, torch.full((len(images),), NEVER, device=images.device))


class Attack(ABC):
    """Moves images so that a network errs; whose gradient it sees is decided by the caller.

    ``stages`` are run one after the other, each on the samples that those before have left unbroken.
    """

    stages: Sequence[str] = ("",)

    def __init__(self, config: AttackConfig, seed: int) -> None:
        self.name = config.name
        self.config = config
        self.seed = seed
        self.loss: str | None = getattr(config, "loss", None)  # None: the task's default

    def goal(self) -> Goal:
        """What it asks of a task's objective."""
        return Goal(self.loss, self.config.targeted, self.seed)

    def with_tiny_budget(self) -> Self:
        """The same with few steps, queries and attempts: enough to see whether eps = 0 changes nothing."""
        few = {
            item.name: min(getattr(self.config, item.name), 2)
            for item in fields(self.config)
            if item.name in ("steps", "queries", "attempts", "restarts")
        }
        return type(self)(replace(self.config, **few), self.seed)

    @abstractmethod
    def __call__(
        self, stage: str, model: AttackedModel, batch: Batch, objective: Objective, eps: float
    ) -> AttackResult:
        """Attack ``batch`` within the ball of radius ``eps``.

        Args:
            batch: its ``samples`` are the images' indices in the whole test split; they key random numbers.
        """


# Constructors ``(config, seed) -> Attack``.
ATTACKS: Registry[Callable[..., Attack]] = Registry("attack.name")


class OpenSamples:
    """Which samples of a batch the attack has not succeeded on yet, and the batch and objective of those.

    An attack that leaves finished samples alone has to know how many are left. The host asks the device for
    that once in each step, and sends back where the others are.

    Attributes:
        batch: the open samples.
        objective: of the open samples.
        index: (n,) where they are among all, on the batch's device.
        steps_to_success: (N,) of all samples, what :meth:`note` was told; -1 before that.
    """

    def __init__(self, batch: Batch, objective: Objective) -> None:
        self.batch = batch
        self.objective = objective
        self.index = torch.arange(len(batch), device=batch.images.device)
        self.steps_to_success = torch.full_like(self.index, NEVER)

    def __len__(self) -> int:
        return len(self.index)

    def note(self, adversarial: Tensor, effort: int) -> None:
        """Note ``effort`` for those open samples that are ``adversarial``, (n,) bool, for the first time."""
        before = self.steps_to_success[self.index]
        self.steps_to_success[self.index] = torch.where(adversarial & (before < 0), effort, before)

    def close(self, adversarial: Tensor) -> Tensor | None:
        """Leave alone those that are ``adversarial``, (n,) bool. Returns where the others were among the open
        ones before, on the batch's device, or None if none is adversarial."""
        kept = (~adversarial.cpu()).nonzero().flatten()
        if len(kept) == len(self):
            return None
        index = to_device(kept, self.index.device)
        self.batch = self.batch.take(kept)
        self.objective = self.objective.take(index)
        self.index = self.index[index]
        return index
