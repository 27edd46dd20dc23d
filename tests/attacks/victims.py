"""Attacks, victims and views made in a line."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sstune.attacks import (
    ATTACKS,
    Attack,
    AttackedModel,
    AttackResult,
    GradientSource,
    Outcome,
    Victim,
    attack_batches,
    run_attack,
)
from sstune.datasets import Batch, Split
from sstune.schema import GROUPS, AttackConfig, ClassificationConfig, Gradient
from sstune.tasks import Objective, Score, evaluate
from sstune.tasks.classification import Classification, Misclassification

CPU = torch.device("cpu")
CLASSIFICATION = Classification(ClassificationConfig("classification"), 10)
ASCENTS = ["fgsm", "pgd", "mifgsm"]
OWN = (Gradient.rule, Gradient.exact)


def make(name: str, seed: int = 0, **fields: Any) -> Attack:
    """``make("pgd", steps=3)``."""
    return ATTACKS[name](GROUPS["attack"][name](name=name, eps=["8/255"], **fields), seed)


@dataclass(frozen=True, eq=False)
class Labelled(Batch):
    """A batch of a classification, with the classes that an attack wants, if not any wrong one."""

    wanted: Tensor | None = None

    @property
    def labels(self) -> Tensor:
        return self.targets

    def success(self, outputs: Tensor) -> Tensor:
        """Where an attack with these outputs has succeeded, by its definition."""
        predicted = outputs.argmax(1)
        return predicted != self.targets if self.wanted is None else predicted == self.wanted

    def take(self, index: Tensor) -> Labelled:
        wanted = None if self.wanted is None else self.wanted[index]
        return Labelled(self.images[index], self.targets[index], self.samples[index], wanted)


def labelled(
    images: Tensor, labels: Tensor, wanted: Tensor | None, samples: Tensor | Sequence[int]
) -> Labelled:
    return Labelled(images, labels, torch.as_tensor(samples), wanted)


def batch_of(split: Split, wanted: Tensor | None = None) -> Labelled:
    """The whole split, each image with its position as its key."""
    assert isinstance(split.images, Tensor)
    return labelled(split.images / 255, split.targets, wanted, range(len(split)))


def objective_of(batch: Labelled, loss: str = "ce") -> Misclassification:
    return Misclassification(batch.targets, batch.wanted, loss)


def gradients(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Of each image's cross-entropy."""
    images = images.detach().requires_grad_()
    (found,) = torch.autograd.grad(F.cross_entropy(network(images), labels, reduction="sum"), images)
    return found


def judged(network: nn.Module, split: Split) -> Tensor:
    """Which samples are classified correctly, (N,) bool."""
    each = evaluate(network, CLASSIFICATION, split, CPU).score.each
    assert each is not None
    return each


def victim_of(
    network: nn.Module, split: Split, samples: Tensor | None = None, clean: Tensor | None = None
) -> Victim:
    """With ``clean``, (N,) bool, in place of what the network says of the samples."""
    samples = torch.arange(len(split)) if samples is None else samples
    if clean is None:
        return Victim.of(network, CLASSIFICATION, split, samples, CPU)
    predictions = torch.where(clean, split.targets, -1)
    return Victim(network, CLASSIFICATION, split, samples, predictions, Score.count(clean), CPU)


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
    return run_attack(
        victim_of(network, split, **of_victim), attack, GradientSource(gradient, network), eps, batch_size
    )


def right(network: nn.Module, attack: Attack, split: Split, eps: float, *args: Any, **kwargs: Any) -> Tensor:
    return attacked(network, attack, split, eps, *args, **kwargs).robust


def stopped(victim: Victim, attack: Attack, source: GradientSource, eps: float, size: int, n: int) -> Outcome:
    """What is left of an attack that is stopped after ``n`` batches, as a file would hold it."""
    outcome = victim.begin(30)
    with closing(attack_batches(victim, attack, source, eps, size, outcome)) as batches_done:
        for _ in range(n):
            next(batches_done)
        return Outcome.from_arrays(copy.deepcopy(outcome.arrays()))


class Spy(Attack):
    """Moves nothing, and keeps what it was asked to attack."""

    def __init__(self, stages: Sequence[str] = ("",)) -> None:
        super().__init__(AttackConfig(name="spy", eps=["0"]), 0)
        self.stages = stages
        self.samples: dict[str, list[int]] = {}
        self.images: list[Tensor] = []
        self.modes: set[bool] = set()

    def with_tiny_budget(self) -> Spy:
        return self

    def __call__(
        self, stage: str, model: AttackedModel, batch: Batch, objective: Objective, eps: float
    ) -> AttackResult:
        self.samples.setdefault(stage, []).extend(batch.samples.tolist())
        self.images.append(batch.images)
        self.modes |= {module.training for module in model.modules()}
        assert not any(parameter.requires_grad for parameter in model.parameters())
        return AttackResult(self.move(stage, batch), torch.full_like(batch.targets, 5))

    def move(self, stage: str, batch: Batch) -> Tensor:
        return batch.images
