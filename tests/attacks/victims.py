"""Attacks, victims and views made in a line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sstune.attacks import ATTACKS, Attack, Attempt, Batch, Outcome, Subject, Victim, View, robust
from sstune.datasets import Split
from sstune.schema import GROUPS, AttackConfig, ClassificationConfig, Gradient
from sstune.tasks import evaluate
from sstune.tasks.classification import Classification

CPU = torch.device("cpu")
ASCENTS = ["fgsm", "pgd", "mifgsm"]
OWN = (Gradient.rule, Gradient.exact)


def make(name: str, seed: int = 0, **fields: Any) -> Attack:
    """``make("pgd", steps=3)``."""
    return ATTACKS[name](GROUPS["attack"][name](name=name, eps=["8/255"], **fields), seed)


def batch_of(split: Split, targets: Tensor | None = None) -> Batch:
    """The whole split, each image with its position as its key."""
    return Batch(split.images / 255, split.labels, targets, range(len(split)))


def gradients(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Of each image's cross-entropy."""
    images = images.detach().requires_grad_()
    (found,) = torch.autograd.grad(F.cross_entropy(network(images), labels, reduction="sum"), images)
    return found


def judged(network: nn.Module, split: Split) -> Tensor:
    return evaluate(network, Classification(ClassificationConfig("classification"), 10), split, CPU).correct


def victim_of(
    network: nn.Module, split: Split, samples: Tensor | None = None, clean: Tensor | None = None
) -> Victim:
    samples = torch.arange(len(split)) if samples is None else samples
    return Victim(network, split, samples, judged(network, split) if clean is None else clean, CPU)


def attacked(
    network: nn.Module,
    attack: Attack,
    split: Split,
    eps: float,
    gradient: Gradient = Gradient.exact,
    batch_size: int = 64,
    **of_victim: Any,
) -> Outcome:
    """The outcome of an attack on ``network`` through its own gradient."""
    return robust(victim_of(network, split, **of_victim), attack, View(gradient, network), eps, batch_size)


def right(network: nn.Module, attack: Attack, split: Split, eps: float, *args: Any, **kwargs: Any) -> Tensor:
    return attacked(network, attack, split, eps, *args, **kwargs).right


class Spy(Attack):
    """Moves nothing, and keeps what it was asked to attack."""

    def __init__(self, parts: Sequence[str] = ("",)) -> None:
        super().__init__(AttackConfig(name="spy", eps=["0"]), 0)
        self.parts = parts
        self.samples: dict[str, list[int]] = {}
        self.images: list[Tensor] = []
        self.modes: set[bool] = set()

    def shortened(self) -> Spy:
        return self

    def __call__(self, part: str, subject: Subject, batch: Batch, eps: float) -> Attempt:
        self.samples.setdefault(part, []).extend(batch.samples)
        self.images.append(batch.images)
        self.modes |= {module.training for module in subject.modules()}
        assert not any(parameter.requires_grad for parameter in subject.parameters())
        return Attempt(self.move(part, batch), torch.full_like(batch.labels, 5))

    def move(self, part: str, batch: Batch) -> Tensor:
        return batch.images
