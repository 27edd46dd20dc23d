"""What an attack is: hyper-parameters at construction, a batch and eps at the call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from sstune.attacks.subject import Subject
from sstune.copying import to_device
from sstune.registry import Registry
from sstune.schema import AttackConfig


@dataclass(frozen=True)
class Batch:
    """What is attacked.

    Args:
        images: (N, C, H, W) in [0,1], float32.
        labels: (N,) true classes.
        targets: (N,) classes to reach, or None where any wrong class will do.
        samples: each image's index in its split, which keys its random numbers.
    """

    images: Tensor
    labels: Tensor
    targets: Tensor | None
    samples: Sequence[int]

    def broken(self, outputs: Tensor) -> Tensor:
        """Which samples an attack with these outputs, (N, classes), has succeeded on, (N,) bool."""
        predicted = outputs.argmax(1)
        return predicted != self.labels if self.targets is None else predicted == self.targets

    def take(self, kept: Tensor) -> Batch:
        """The samples at ``kept``, which is on the CPU."""
        index = to_device(kept, self.labels.device)
        targets = None if self.targets is None else self.targets[index]
        samples = [self.samples[i] for i in kept.tolist()]
        return Batch(self.images[index], self.labels[index], targets, samples)


class Open:
    """Which samples of a batch are still to be broken, and the batch of those alone.

    Whoever leaves broken samples alone has to know how many are left. The host asks the device for that once
    in each step, for which samples are broken, and sends back where the others are.

    Attributes:
        batch: the open samples.
        index: (n,) where they are among all, on the batch's device.
        effort: (N,) of all samples, what :meth:`note` was told; -1 before that.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.index = torch.arange(len(batch.labels), device=batch.labels.device)
        self.effort = torch.full_like(batch.labels, -1)

    def __len__(self) -> int:
        return len(self.index)

    def note(self, broken: Tensor, effort: int) -> None:
        """The effort after which those open samples broke first that are ``broken``, (n,) bool."""
        before = self.effort[self.index]
        self.effort[self.index] = torch.where(broken & (before < 0), effort, before)

    def close(self, broken: Tensor) -> Tensor | None:
        """Leave alone those that are ``broken``, (n,) bool. Returns where the others were among the open ones
        before, on the batch's device, or None if none is broken."""
        kept = (~broken.cpu()).nonzero().flatten()
        if len(kept) == len(self):
            return None
        self.batch = self.batch.take(kept)
        index = to_device(kept, self.index.device)
        self.index = self.index[index]
        return index


@dataclass(frozen=True)
class Attempt:
    """What came of a batch.

    Args:
        images: (N, C, H, W) in [0,1] and in the ball.
        effort: (N,) gradient steps, or queries, after which a sample was broken; -1 where it never was, or
            the attack does not say.
    """

    images: Tensor
    effort: Tensor


class Attack(ABC):
    """Moves images so that a network errs; whose gradient it sees is decided by the caller.

    ``parts`` are run one after the other, each on the samples that those before have left unbroken.
    """

    parts: Sequence[str] = ("",)

    def __init__(self, config: AttackConfig, seed: int) -> None:
        self.name = config.name
        self.config = config
        self.seed = seed

    def shortened(self) -> Self:
        """The same with few steps, queries and attempts: enough to see whether eps = 0 changes nothing."""
        few = {
            item.name: min(getattr(self.config, item.name), 2)
            for item in fields(self.config)
            if item.name in ("steps", "queries", "attempts", "restarts")
        }
        return type(self)(replace(self.config, **few), self.seed)

    @abstractmethod
    def __call__(self, part: str, subject: Subject, batch: Batch, eps: float) -> Attempt:
        """Attack ``batch`` within the ball of radius ``eps``."""


# Constructors ``(config, seed) -> Attack``.
ATTACKS: Registry[Callable[..., Attack]] = Registry("attack.name")
