"""The interface of an attack: settings at construction; a batch, an objective and eps at the call."""

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
from sstune.schema import AttackConfig, AttackLoss
from sstune.tasks import Goal, Objective

NEVER = -1


@dataclass(frozen=True)
class AttackResult:
    """The adversarial images of a batch.

    Args:
        images: (N, C, H, W) in [0,1], within eps of the originals.
        steps_to_success: (N,) gradient steps or queries after which the attack succeeded on a sample; -1
            where it never did, or does not report it.
        zero_gradients: (N,) share of the gradients that were zero in every pixel; None if not reported.
    """

    images: Tensor
    steps_to_success: Tensor
    zero_gradients: Tensor | None = None

    @classmethod
    def of_unknown_steps(cls, images: Tensor) -> AttackResult:
        """For an attack that does not report its steps or queries."""
        return cls(images, torch.full((len(images),), NEVER, device=images.device))


class Attack(ABC):
    """Base class of all attacks. The caller decides whose gradient the attack sees.

    ``stages`` run one after the other, each on the samples on which the earlier ones did not succeed.
    """

    stages: Sequence[str] = ("",)

    def __init__(self, config: AttackConfig, seed: int) -> None:
        self.name = config.name
        self.config = config
        self.seed = seed
        loss = getattr(config, "loss", None)
        self.loss: str | None = None if loss == AttackLoss.ce else loss  # None: the task's default

    def goal(self) -> Goal:
        """The goal that the task makes an objective of."""
        return Goal(self.loss, self.config.targeted, self.seed)

    def with_tiny_budget(self) -> Self:
        """A copy with few steps, queries and attempts, enough to check that eps = 0 changes nothing."""
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
    """The samples of a batch on which the attack has not succeeded yet, with their batch and objective.

    The host has to know how many samples are open. It reads one mask from the device in each step, and sends
    the positions of the open samples back.

    Attributes:
        batch: the open samples.
        objective: of the open samples.
        index: (n,) where they are among all, on the batch's device.
        steps_to_success: (N,) of all samples, as set by :meth:`note`; -1 before.
    """

    def __init__(self, batch: Batch, objective: Objective) -> None:
        self.batch = batch
        self.objective = objective
        self.index = torch.arange(len(batch), device=batch.images.device)
        self.steps_to_success = torch.full_like(self.index, NEVER)

    def __len__(self) -> int:
        return len(self.index)

    def note(self, adversarial: Tensor, step: int) -> None:
        """Set ``step`` for the open samples that are ``adversarial``, (n,) bool, for the first time."""
        before = self.steps_to_success[self.index]
        self.steps_to_success[self.index] = torch.where(adversarial & (before < 0), step, before)

    def close(self, adversarial: Tensor) -> Tensor | None:
        """Close the samples that are ``adversarial``, (n,) bool.

        Returns:
            The positions of the others among the samples that were open before, on the batch's device; None
            if no sample is adversarial.
        """
        kept = (~adversarial.cpu()).nonzero().flatten()
        if len(kept) == len(self):
            return None
        index = to_device(kept, self.index.device)
        self.batch = self.batch.take(kept)
        self.objective = self.objective.take(index)
        self.index = self.index[index]
        return index


class BestIterates:
    """The iterate of each sample with the most merit, where the objective ranks iterates.

    Args:
        start: (N, C, H, W), where the attack begins.
    """

    def __init__(self, start: Tensor) -> None:
        self.start = start
        self.merit = start.new_full((len(start),), -torch.inf, dtype=torch.float64)
        self.images: Tensor | None = None

    def update(self, open_: OpenSamples, images: Tensor, outputs: Tensor) -> None:
        """Keep those of ``images``, (n, C, H, W) of the open samples, with more merit than all before."""
        merit = open_.objective.merit(outputs)
        if merit is None:
            return
        if self.images is None:
            self.images = self.start.clone()
        before = self.merit[open_.index]
        better = merit > before
        self.merit[open_.index] = torch.where(better, merit.double(), before)
        kept = torch.where(better[:, None, None, None], images, self.images[open_.index])
        self.images[open_.index] = kept

    @property
    def ranked(self) -> bool:
        """Whether the objective ranks iterates."""
        return self.images is not None

    def of(self, last: Tensor) -> Tensor:
        """The best iterates, (N, C, H, W); ``last`` where the objective does not rank them."""
        return last if self.images is None else self.images
