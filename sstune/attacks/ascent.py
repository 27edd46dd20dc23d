"""Gradient attacks: FGSM, PGD and MI-FGSM in the Linf and the L2 ball.

All take images in [0,1] and return images in [0,1] within eps. With ``early_exit``, the default, a sample
keeps its first adversarial iterate, as a later step may undo the success (Pintor et al. 2021). For an
objective that ranks iterates it keeps the best one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from sstune.attacks.attack import (
    ATTACKS,
    NEVER,
    Attack,
    AttackResult,
    BestIterates,
    OpenSamples,
)
from sstune.attacks.attacked_model import AttackedModel
from sstune.attacks.steps import FixedLength, Momentum, StepRule, length
from sstune.copying import to_device
from sstune.datasets import Batch
from sstune.quantities import parse_step_size
from sstune.schema import AscentConfig, IteratedConfig, MiFgsmConfig, Norm, PgdConfig
from sstune.seeding import seed_from
from sstune.tasks import Objective

TINY = 1e-12  # against division by zero


@dataclass(frozen=True)
class GradientAscent:
    """Gradient ascent on the loss of an objective; each iterate is projected into the ball.

    Args:
        step_rule: makes the step rule for a batch, from the images where it begins.
        early_exit: stop a sample at its first adversarial iterate.
    """

    steps: int
    step_rule: Callable[[Tensor], StepRule]
    norm: Norm = Norm.Linf
    early_exit: bool = True

    def __call__(
        self, model: AttackedModel, batch: Batch, objective: Objective, start: Tensor, eps: float
    ) -> AttackResult:
        """Start at ``start``, (N, C, H, W), and stay within ``eps`` of the batch's images."""
        result = start.clone()
        step_rule = self.step_rule(start)
        open_ = OpenSamples(batch, objective)
        best = BestIterates(start)
        zeros, tries = torch.zeros(2, len(batch), device=start.device)
        for step in range(self.steps):
            progress = step / self.steps
            images = result[open_.index]
            outputs, gradient = loss_gradient(model, images, open_.objective, progress)
            best.update(open_, images, outputs)
            zeros[open_.index] += (gradient == 0).flatten(1).all(1)
            tries[open_.index] += 1
            adversarial = open_.objective.is_adversarial(outputs)
            open_.note(adversarial, step)
            early_exit = self.early_exit and not best.ranked
            if early_exit and (kept := open_.close(adversarial)) is not None:
                if len(open_) == 0:
                    return AttackResult(best.of(result), open_.steps_to_success, zeros / tries)
                gradient = gradient[kept]
            moved = result[open_.index] + step_rule(gradient, open_.index)
            result[open_.index] = project(moved, open_.batch.images, eps, self.norm)
        with torch.no_grad():
            images = result[open_.index]
            outputs = model(images)
            best.update(open_, images, outputs)
            open_.note(open_.objective.is_adversarial(outputs), self.steps)
        return AttackResult(best.of(result), open_.steps_to_success, zeros / tries)


def loss_gradient(
    model: AttackedModel, images: Tensor, objective: Objective, progress: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Outputs, and the gradient of each sample's own loss with respect to its image, in the direction that
    the attack wants; both averaged over ``model.eot`` passes (Athalye et al. 2018, arXiv 1802.00420)."""
    outputs, gradients = [], []
    for _ in range(model.eot):
        leaf = images.detach().requires_grad_()
        with torch.enable_grad():
            found = model(leaf)
            total = objective.loss(found, leaf, progress).sum()
        (gradient,) = torch.autograd.grad(total, leaf)
        outputs.append(found.detach())
        gradients.append(gradient)
    if model.eot == 1:
        return outputs[0], gradients[0]
    return torch.stack(outputs).mean(0), torch.stack(gradients).mean(0)


def project(adversarial: Tensor, images: Tensor, eps: float, norm: Norm = Norm.Linf) -> Tensor:
    """Project into the ball of radius eps around ``images`` (L2: along the radius) and into [0,1]."""
    delta = adversarial - images
    if norm is Norm.Linf:
        return (images + delta.clamp(-eps, eps)).clamp(0, 1)
    return (images + delta * (eps / length(delta).clamp_min(max(eps, TINY)))).clamp(0, 1)


@ATTACKS.register("fgsm")
class Fgsm(Attack):
    """One step of size eps along the gradient's sign (Goodfellow et al. 2015, arXiv 1412.6572); under L2
    along the gradient."""

    config: AscentConfig

    def __call__(
        self, stage: str, model: AttackedModel, batch: Batch, objective: Objective, eps: float
    ) -> AttackResult:
        norm = self.config.norm
        ascent = GradientAscent(1, partial(FixedLength, size=eps, norm=norm), norm, early_exit=False)
        return ascent(model, batch, objective, batch.images, eps)


class IteratedAttack(Attack):
    """Base class of attacks that take many steps of the same length."""

    config: IteratedConfig

    def ascent(self, step_rule: Callable[..., StepRule], eps: float) -> GradientAscent:
        """Gradient ascent as configured. With ``eight_bit`` there is no early exit, as rounding may undo a
        narrow success."""
        config = self.config
        size = parse_step_size(config.step_size, eps, config.norm)
        early_exit = config.early_exit and not config.eight_bit
        return GradientAscent(
            config.steps, partial(step_rule, size=size, norm=config.norm), config.norm, early_exit
        )


@ATTACKS.register("mifgsm")
class MiFgsm(IteratedAttack):
    """Momentum iterative FGSM, started at the image (Dong et al. 2018, arXiv 1710.06081)."""

    config: MiFgsmConfig

    def __call__(
        self, stage: str, model: AttackedModel, batch: Batch, objective: Objective, eps: float
    ) -> AttackResult:
        ascent = self.ascent(partial(Momentum, decay=self.config.decay), eps)
        return ascent(model, batch, objective, batch.images, eps)


@ATTACKS.register("pgd", "mainstay", "hag_sign")
class Pgd(IteratedAttack):
    """Projected gradient descent (Madry et al. 2018, arXiv 1706.06083) from random starts in the ball.

    ``mainstay`` and ``hag_sign`` are this attack with losses of hashing.

    The start of a sample depends on (seed, restart, sample) alone, and is proportional to eps.
    """

    config: PgdConfig

    def __init__(self, config: PgdConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.stages = [f"restart {number}" for number in range(config.restarts)]

    def __call__(
        self, stage: str, model: AttackedModel, batch: Batch, objective: Objective, eps: float
    ) -> AttackResult:
        restart = self.stages.index(stage)
        start = self.start(batch, eps, restart)
        attempt = self.ascent(FixedLength, eps)(model, batch, objective, start, eps)
        steps = restart * self.config.steps
        later = torch.where(attempt.steps_to_success < 0, NEVER, attempt.steps_to_success + steps)
        return replace(attempt, steps_to_success=later)

    def start(self, batch: Batch, eps: float, restart: int) -> Tensor:
        """Linf: uniform in the ball. L2: a random direction, and a length uniform up to eps."""
        if not self.config.random_start:
            return batch.images.clone()
        key = ("pgd", restart)
        noise = random_in_ball(batch.images.shape, self.config.norm, self.seed, key, batch.samples)
        moved = batch.images + eps * to_device(noise, batch.images.device)
        return project(moved, batch.images, eps, self.config.norm)


def random_in_ball(
    shape: torch.Size, norm: Norm, seed: int, key: tuple[int | str, ...], samples: Tensor | Sequence[int]
) -> Tensor:
    """Points of the unit ball, one for each of ``samples``, keyed by (seed, key, sample).

    Drawn on the CPU, so that they are the same on every device; by several threads, since one thread needs
    16 us for a CIFAR image and 0.6 ms for an ImageNet image, longer than a forward pass on a GPU.
    """
    with torch.inference_mode(False):  # it is not handed on to the threads
        noise = torch.empty(shape)

    def draw(which: range) -> None:
        for position in which:
            row = noise[position]
            generator = torch.Generator().manual_seed(seed_from(seed, *key, int(samples[position])))
            if norm is Norm.Linf:
                row.uniform_(-1, 1, generator=generator)
            else:
                row.normal_(generator=generator)
                row *= torch.rand((), generator=generator) / torch.linalg.vector_norm(row)

    n_threads = min(torch.get_num_threads(), len(samples))
    if n_threads < 2:
        draw(range(len(samples)))
    else:
        with ThreadPoolExecutor(n_threads) as pool:
            list(pool.map(draw, [range(first, len(samples), n_threads) for first in range(n_threads)]))
    return noise
