"""Attacks that go up the gradient: FGSM, PGD and MI-FGSM in the Linf and the L2 ball.

All take images in [0,1] and return images in [0,1] within eps. Unless told otherwise, a sample that breaks at
some iterate keeps that iterate and is left alone: a later step may undo the success (Pintor et al. 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sstune.attacks.registry import ATTACKS, Attack, Attempt, Batch, Open
from sstune.attacks.subject import Subject
from sstune.copying import to_device
from sstune.quantities import parse_step_size
from sstune.schema import AscentConfig, AttackLoss, IteratedConfig, MiFgsmConfig, Norm, PgdConfig
from sstune.seeding import seed_from

TINY = 1e-12  # against division by zero


@dataclass(frozen=True)
class Ascent:
    """How to go up.

    Args:
        step_size: length of a step in ``norm``.
        decay: of the accumulated gradient (Dong et al. 2018, arXiv 1710.06081); None: only the present one.
        early_exit: leave a sample alone once it is broken, at the iterate that broke it.
    """

    steps: int
    step_size: float
    norm: Norm = Norm.Linf
    loss: AttackLoss = AttackLoss.ce
    decay: float | None = None
    early_exit: bool = True

    def __call__(self, subject: Subject, batch: Batch, start: Tensor, eps: float) -> Attempt:
        """From ``start``, (N, C, H, W), within the ball of radius ``eps`` around the batch's images."""
        result = start.clone()
        velocity = torch.zeros_like(start)
        open_ = Open(batch)
        for step in range(self.steps):
            outputs, gradient = loss_gradient(subject, result[open_.index], open_.batch, self.loss)
            broken = open_.batch.broken(outputs)
            open_.note(broken, step)
            if self.early_exit and (kept := open_.close(broken)) is not None:
                if len(open_) == 0:
                    return Attempt(result, open_.effort)
                gradient = gradient[kept]
            at = open_.index
            if self.decay is not None:
                mean = gradient.abs().mean((1, 2, 3), keepdim=True)
                gradient = self.decay * velocity[at] + gradient / mean.where(mean > 0, 1)
                velocity[at] = gradient
            moved = result[at] + self.step_size * direction(gradient, self.norm)
            result[at] = project(moved, open_.batch.images, eps, self.norm)
        with torch.no_grad():
            open_.note(open_.batch.broken(subject(result[open_.index])), self.steps)
        return Attempt(result, open_.effort)


def loss_gradient(subject: Subject, images: Tensor, batch: Batch, loss: AttackLoss) -> tuple[Tensor, Tensor]:
    """Outputs, and the gradient of each sample's own loss with respect to its image, in the direction that
    the attack wants; both averaged over ``subject.eot`` passes (Athalye et al. 2018, arXiv 1802.00420)."""
    classes, sign = (batch.labels, 1) if batch.targets is None else (batch.targets, -1)
    outputs, gradients = [], []
    for _ in range(subject.eot):
        leaf = images.detach().requires_grad_()
        with torch.enable_grad():
            logits = subject(leaf)
            total = sign * LOSSES[loss](logits, classes).sum()
        (gradient,) = torch.autograd.grad(total, leaf)
        outputs.append(logits.detach())
        gradients.append(gradient)
    if subject.eot == 1:
        return outputs[0], gradients[0]
    return torch.stack(outputs).mean(0), torch.stack(gradients).mean(0)


def cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """Of each sample, (N,); summed, never averaged, so that small ones do not vanish."""
    return F.cross_entropy(logits, classes, reduction="none")


def margin(logits: Tensor, classes: Tensor) -> Tensor:
    """The best other logit less that of ``classes`` (Carlini & Wagner 2017, arXiv 1608.04644), (N,)."""
    chosen = logits.gather(1, classes[:, None])[:, 0]
    others = logits.scatter(1, classes[:, None], -torch.inf)
    return others.amax(1) - chosen


LOSSES = {AttackLoss.ce: cross_entropy, AttackLoss.margin: margin}


def direction(gradient: Tensor, norm: Norm) -> Tensor:
    """The steepest direction of length 1 in ``norm``; zero where the gradient is."""
    if norm is Norm.Linf:
        return gradient.sign()
    largest = gradient.abs().amax((1, 2, 3), keepdim=True)
    scaled = gradient / largest.where(largest > 0, 1)  # the squares of tiny gradients would be zero
    return scaled / length(scaled).clamp_min(1)


def length(delta: Tensor) -> Tensor:
    """L2 norm of each sample, (N, 1, 1, 1)."""
    return torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True)


def project(adversarial: Tensor, images: Tensor, eps: float, norm: Norm = Norm.Linf) -> Tensor:
    """Back into the ball of radius eps around ``images``, along the radius for L2, and into [0,1]."""
    delta = adversarial - images
    if norm is Norm.Linf:
        return (images + delta.clamp(-eps, eps)).clamp(0, 1)
    return (images + delta * (eps / length(delta).clamp_min(max(eps, TINY)))).clamp(0, 1)


@ATTACKS.register("fgsm")
class Fgsm(Attack):
    """One step of size eps along the gradient's sign (Goodfellow et al. 2015, arXiv 1412.6572); under L2
    along the gradient."""

    config: AscentConfig

    def __call__(self, part: str, subject: Subject, batch: Batch, eps: float) -> Attempt:
        ascent = Ascent(1, eps, self.config.norm, self.config.loss, early_exit=False)
        return ascent(subject, batch, batch.images, eps)


def _ascent(config: IteratedConfig, eps: float, decay: float | None = None) -> Ascent:
    step_size = parse_step_size(config.step_size, eps, config.norm)
    early_exit = config.early_exit and not config.eight_bit  # rounding may undo what breaks so narrowly
    return Ascent(config.steps, step_size, config.norm, config.loss, decay, early_exit)


@ATTACKS.register("mifgsm")
class MiFgsm(Attack):
    """Momentum iterative FGSM, from the image itself (Dong et al. 2018, arXiv 1710.06081)."""

    config: MiFgsmConfig

    def __call__(self, part: str, subject: Subject, batch: Batch, eps: float) -> Attempt:
        return _ascent(self.config, eps, self.config.decay)(subject, batch, batch.images, eps)


@ATTACKS.register("pgd")
class Pgd(Attack):
    """Projected gradient descent (Madry et al. 2018, arXiv 1706.06083) from random starts in the ball.

    The start of a sample depends on (seed, restart, sample) alone, and is proportional to eps.
    """

    config: PgdConfig

    def __init__(self, config: PgdConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.parts = [f"restart {number}" for number in range(config.restarts)]

    def __call__(self, part: str, subject: Subject, batch: Batch, eps: float) -> Attempt:
        restart = self.parts.index(part)
        attempt = _ascent(self.config, eps)(subject, batch, self.start(batch, eps, restart), eps)
        steps = restart * self.config.steps
        return Attempt(attempt.images, torch.where(attempt.effort < 0, -1, attempt.effort + steps))

    def start(self, batch: Batch, eps: float, restart: int) -> Tensor:
        """Linf: uniform in the ball. L2: a random direction, and a length uniform up to eps."""
        if not self.config.random_start:
            return batch.images.clone()
        key = ("pgd", restart)
        noise = random_in_ball(batch.images.shape, self.config.norm, self.seed, key, batch.samples)
        moved = batch.images + eps * to_device(noise, batch.images.device)
        return project(moved, batch.images, eps, self.config.norm)


def random_in_ball(
    shape: torch.Size, norm: Norm, seed: int, key: tuple[int | str, ...], samples: Sequence[int]
) -> Tensor:
    """Points of the unit ball, one for each of ``samples``, keyed by (seed, key, sample).

    They are drawn on the CPU, whatever the device, so that they are the same everywhere; by as many threads
    as torch uses there, since one draws a value in 5 ns: 16 us for a CIFAR image, 0.6 ms for one of ImageNet,
    which is longer than a GPU needs to look at it.
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
