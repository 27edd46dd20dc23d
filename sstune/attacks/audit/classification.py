"""The parts of the audit that need a classifier: cross-entropies, input gradients and chance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from sstune.attacks.ascent import loss_gradient
from sstune.attacks.attacked_model import AttackedModel
from sstune.attacks.evaluation import GradientSource, Victim, gradient_mode
from sstune.datasets import Batch, batches
from sstune.schema import AttackLoss
from sstune.tasks import Goal, Objective


def spread_batches(victim: Victim, n: int, batch_size: int) -> Iterator[Batch]:
    """``n`` samples, evenly spread over the victim's, in batches on its device."""
    some = victim.some(n)
    for batch in batches(some.split, batch_size, some.device):
        yield replace(batch, samples=some.samples[batch.samples])


def objective(victim: Victim, batch: Batch, loss: AttackLoss) -> Objective:
    """Of an untargeted attack on ``batch``."""
    return victim.task.objective(batch, Goal(loss), lambda: victim.network(batch.images))


def input_gradient(victim: Victim, source: GradientSource, batch: Batch, *key: int | str) -> Tensor:
    """Gradient of the cross-entropy with respect to the images, (N, C, H, W) float64, so that the squares of
    tiny values do not vanish; random feedback is drawn by ``key``."""
    wanted = objective(victim, batch, AttackLoss.ce)
    with gradient_mode(source.network, source.gradient):
        return loss_gradient(source.model(*key), batch.images, wanted)[1].double()


def margin_pass(victim: Victim, model: AttackedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Outputs, and the gradient of the margin with respect to the images."""
    return loss_gradient(model, batch.images, objective(victim, batch, AttackLoss.margin))


def losses(victim: Victim, source: GradientSource, n: int, batch_size: int) -> Tensor:
    """Cross-entropies, (n,) on the CPU, of the samples of :func:`spread_batches`."""
    found = []
    with torch.no_grad(), gradient_mode(victim.network, source.gradient):
        for batch in spread_batches(victim, n, batch_size):
            wanted = objective(victim, batch, AttackLoss.ce)
            found.append(wanted.loss(victim.network(batch.images), batch.images, 0.0).cpu())
    return torch.cat(found)


def chance(victim: Victim, n_classes: int) -> float:
    """Accuracy of guessing, or of the best constant answer if that is higher."""
    most_frequent = int(victim.split.targets.bincount().max())
    return max(1 / n_classes, most_frequent / len(victim.clean))


def are_probabilities(outputs: Tensor) -> bool:
    """Whether outputs, (N, classes), are those of a softmax."""
    return bool((outputs >= 0).all()) and float((outputs.sum(1) - 1).abs().max()) < 1e-3
