"""What checks ask of a network without an attack: input gradients, and whether its outputs saturate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from sstune.attacks.ascent import loss_gradient
from sstune.attacks.attacked_model import AttackedModel
from sstune.attacks.evaluation import GradientSource, Victim, gradient_mode
from sstune.datasets import Batch, batches
from sstune.modes import eval_mode
from sstune.rules import frozen_feedback
from sstune.schema import AttackLoss
from sstune.tasks import Goal, Objective


def spread_batches(victim: Victim, n: int, batch_size: int) -> Iterator[Batch]:
    """``n`` samples, evenly spread over the victim's, in batches on its device."""
    some = victim.some(n)
    for batch in batches(some.split, batch_size, some.device):
        yield replace(batch, samples=some.samples[batch.samples])


@torch.no_grad()
def objective(victim: Victim, batch: Batch, loss: AttackLoss) -> Objective:
    """Of an untargeted attack on ``batch``."""
    network = victim.network
    with eval_mode(network), frozen_feedback(network):
        goal = Goal(loss, reference=victim.reference)
        return victim.task.objective(batch, goal, lambda: network(batch.images))


def input_gradient(
    victim: Victim, source: GradientSource, batch: Batch, loss: AttackLoss, *key: int | str
) -> Tensor:
    """Gradient of ``loss`` with respect to the images, (N, C, H, W) float64, so that the squares of tiny
    values do not vanish; random feedback is drawn by ``key``."""
    wanted = objective(victim, batch, loss)
    with gradient_mode(source.network, source.gradient):
        return loss_gradient(source.model(*key), batch.images, wanted)[1].double()


def gradient_pass(
    victim: Victim, model: AttackedModel, batch: Batch, loss: AttackLoss
) -> tuple[Tensor, Tensor]:
    """Outputs, and the gradient of ``loss`` with respect to the images."""
    return loss_gradient(model, batch.images, objective(victim, batch, loss))


def saturated(victim: Victim, source: GradientSource, n: int, batch_size: int) -> Tensor:
    """How far the loss is saturated, (n,) on the CPU, of the samples of :func:`spread_batches`."""
    with torch.no_grad(), gradient_mode(victim.network, source.gradient):
        found = [
            victim.task.saturated(victim.network(batch.images), batch).cpu()
            for batch in spread_batches(victim, n, batch_size)
        ]
    return torch.cat(found)


@torch.no_grad()
def unattacked_loss(victim: Victim, loss: AttackLoss) -> Tensor:
    """The loss of each image without an attack, (N,) on the CPU."""
    network = victim.network
    with eval_mode(network), frozen_feedback(network):
        found = [
            objective(victim, batch, loss).loss(network(batch.images), batch.images, 0.0).cpu()
            for batch in spread_batches(victim, len(victim.split), 128)
        ]
    return torch.cat(found)
