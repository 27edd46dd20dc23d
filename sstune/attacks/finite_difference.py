"""An attack along a gradient that is estimated from the network's outputs."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from sstune.attacks.ascent import GradientAscent, Pgd, project
from sstune.attacks.attack import ATTACKS, AttackResult
from sstune.attacks.attacked_model import AttackedModel
from sstune.attacks.steps import FixedLength
from sstune.datasets import Batch
from sstune.quantities import parse_step_size
from sstune.schema import FiniteDifferenceConfig
from sstune.tasks import Objective

AT_ONCE = 256  # images of a forward pass
LENGTHS = (1.0, 0.5, 0.25, 0.125)  # of the step along an estimate, relative to eps


@ATTACKS.register("finite_difference")
class FiniteDifference(Pgd):
    """PGD, then steps along the gradient of the loss as finite differences show it.

    In each of ``rounds`` the gradient at the best iterate is estimated by differences over a step of PGD, one
    for each dimension of the image; the best of four steps along its sign follows. So it finds what PGD
    misses because the network's own gradient is wrong, vanishes, or holds nearby only (Uesato et al. 2018,
    arXiv 1802.05666; Ilyas et al. 2018, arXiv 1804.08598, with random directions).
    """

    config: FiniteDifferenceConfig

    def __call__(
        self, stage: str, model: AttackedModel, batch: Batch, objective: Objective, eps: float
    ) -> AttackResult:
        size = parse_step_size(self.config.step_size, eps, self.config.norm)
        rule = partial(FixedLength, size=size, norm=self.config.norm)
        ascent = GradientAscent(self.config.steps, rule, self.config.norm, early_exit=False)
        best = self.start(batch, eps, self.stages.index(stage))
        best = _better(model, objective, best, [ascent(model, batch, objective, best, eps).images])
        for _ in range(self.config.rounds if eps else 0):
            direction = estimated_gradient(model, objective, best, size, self.seed).sign()
            steps = [project(best + eps * length * direction, batch.images, eps) for length in LENGTHS]
            best = _better(model, objective, best, steps)
        return AttackResult.of_unknown_steps(best)


@torch.no_grad()
def _better(model: AttackedModel, objective: Objective, best: Tensor, others: list[Tensor]) -> Tensor:
    """Of ``best`` and ``others``, (N, C, H, W) each, the images with the largest loss; adversarial ones
    first."""
    found = [best, *others]
    outputs = [model(images) for images in found]
    losses = torch.stack([objective.loss(*pair, 0.0) for pair in zip(outputs, found, strict=True)]).double()
    success = torch.stack([objective.is_adversarial(each) for each in outputs])
    rank = torch.where(success, losses - losses.min() + losses.max() + 1, losses)
    return torch.stack(found)[rank.argmax(0), torch.arange(len(best), device=best.device)]


@torch.no_grad()
def estimated_gradient(
    model: AttackedModel, objective: Objective, images: Tensor, step: float, seed: int
) -> Tensor:
    """The gradient of each sample's loss at ``images``, (N, C, H, W), from one difference over ``step`` along
    each of C H W orthogonal directions (:func:`directions`)."""
    shape, size = images.shape[1:], images[0].numel()
    here = objective.loss(model(images), images, 0.0)
    estimate = torch.zeros(len(images), size, device=images.device)
    for first in range(0, size, AT_ONCE):
        along = directions(range(first, min(first + AT_ONCE, size)), size, seed).to(images)
        for sample in range(len(images)):
            index = torch.full((len(along),), sample, device=images.device)
            moved = images[sample] + step * along.view(-1, *shape)
            there = objective.take(index).loss(model(moved), moved, 0.0)
            estimate[sample] += ((there - here[sample]) / step).to(along) @ along
    return (estimate / size).view_as(images)


def directions(numbers: range, size: int, seed: int) -> Tensor:
    """Some of ``size`` orthogonal directions, (len(numbers), size), each of mean square 1: the discrete
    cosine basis with random signs, so that every pixel is part of every direction."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.where(torch.rand(size, generator=generator) < 0.5, -1.0, 1.0)
    frequency = torch.tensor(list(numbers), dtype=torch.float64)[:, None]
    cosines = torch.cos(math.pi * frequency * (torch.arange(size) + 0.5) / size)
    return torch.where(frequency == 0, cosines, math.sqrt(2) * cosines).float() * signs
