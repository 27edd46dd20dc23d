"""Image classification: cross-entropy, accuracy, and attacks towards any wrong class or one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from sstune.copying import to_device
from sstune.datasets import Batch
from sstune.schema import AttackLoss, ClassificationConfig, Target
from sstune.seeding import seed_from
from sstune.tasks.auditing import AuditProfile
from sstune.tasks.objective import Goal, Objective
from sstune.tasks.score import Score
from sstune.tasks.task import TASKS, Task


def cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """Of each sample, (N,), from (N, classes) and (N,)."""
    return F.cross_entropy(logits, classes, reduction="none")


def margin(logits: Tensor, classes: Tensor) -> Tensor:
    """The best other logit less that of ``classes`` (Carlini & Wagner 2017, arXiv 1608.04644), (N,)."""
    chosen = logits.gather(1, classes[:, None])[:, 0]
    others = logits.scatter(1, classes[:, None], -torch.inf)
    return others.amax(1) - chosen


LOSSES = {"ce": cross_entropy, "margin": margin}


@TASKS.register("classification")
class Classification(Task):
    """One output per class; targets are int64 classes, (N,), and so are predictions."""

    metric = "accuracy"
    objectives = tuple(LOSSES)
    audit = AuditProfile(
        "classification", "pgd", AttackLoss.ce, AttackLoss.margin, squashing="softmax", outputs="logits"
    )

    def __init__(self, config: ClassificationConfig, n_classes: int) -> None:
        self.outputs = n_classes
        self.label_smoothing = config.label_smoothing

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(outputs, batch.targets, label_smoothing=self.label_smoothing)

    def predict(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(1)

    def score(self, predictions: Tensor, targets: Tensor, reference: Any = None) -> Score:
        return Score.count(predictions == targets)

    def batch_scores(self, outputs: Tensor, batch: Batch) -> Tensor:
        return outputs.argmax(1) == batch.targets

    def attackable(self, score: Score) -> Tensor:
        """Samples that are classified correctly without an attack."""
        assert score.each is not None
        return score.each

    def chance(self, targets: Tensor, reference: Any, n_classes: int) -> float:
        """Accuracy of guessing, or of the best constant answer if that is higher."""
        return max(1 / n_classes, int(targets.bincount().max()) / len(targets))

    def saturated(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Where the cross-entropy is 0 in float32, (N,) bool."""
        return cross_entropy(outputs, batch.targets) == 0

    def objective(self, batch: Batch, goal: Goal, clean_outputs: Callable[[], Tensor]) -> Objective:
        wanted = None
        if goal.target is not None:
            wanted = target_classes(clean_outputs(), batch, goal.target, goal.seed)
        return Misclassification(batch.targets, wanted, goal.loss or self.objectives[0])


@dataclass(frozen=True, eq=False)
class Misclassification(Objective):
    """Reach any wrong class, or the class in ``wanted``.

    Args:
        targets: (N,) true classes.
        wanted: (N,) classes to reach, or None where any wrong class will do.
        name: of the loss, one of :data:`LOSSES`.
    """

    targets: Tensor
    wanted: Tensor | None = None
    name: str = "ce"

    def loss(self, outputs: Tensor, images: Tensor, progress: float = 0.0) -> Tensor:
        if self.wanted is None:
            return LOSSES[self.name](outputs, self.targets)
        return -LOSSES[self.name](outputs, self.wanted)

    def achieved(self, outputs: Tensor) -> Tensor:
        """Untargeted: 1 where the class is wrong. Targeted: 1 where it is the wanted one, 1/2 where it is
        another wrong one."""
        predicted = outputs.argmax(1)
        wrong = (predicted != self.targets).float()
        return wrong if self.wanted is None else (wrong + (predicted == self.wanted).float()) / 2

    def is_adversarial(self, outputs: Tensor) -> Tensor:
        predicted = outputs.argmax(1)
        return predicted != self.targets if self.wanted is None else predicted == self.wanted

    def take(self, index: Tensor) -> Self:
        wanted = None if self.wanted is None else self.wanted[index]
        return type(self)(self.targets[index], wanted, self.name)


def target_classes(outputs: Tensor, batch: Batch, target: Target, seed: int) -> Tensor:
    """The target class of each sample, (N,), a wrong one, given the network's outputs, (N, classes)."""
    labels, n_classes = batch.targets, outputs.shape[1]
    others = outputs.scatter(1, labels[:, None], -torch.inf)
    if target is Target.runner_up:
        return others.argmax(1)
    if target is Target.least_likely:
        return others.scatter(1, labels[:, None], torch.inf).argmin(1)
    steps = [1 + seed_from(seed, "target", sample) % (n_classes - 1) for sample in batch.samples.tolist()]
    return (labels + to_device(torch.tensor(steps), labels.device)) % n_classes
