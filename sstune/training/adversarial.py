"""Adversarial training: an attack replaces the images of each batch.

Madry et al. 2018, arXiv 1706.06083.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from sstune.attacks import AttackedModel, gradient_mode
from sstune.attacks.ascent import Pgd
from sstune.datasets import Batch
from sstune.quantities import parse_adversary, parse_eps
from sstune.schema import AdversaryConfig, Gradient, PgdConfig
from sstune.seeding import seed_from
from sstune.training.forward import Forward, autocast
from sstune.training.learner import Learner


class Adversary:
    """Moves training images up the loss of ``network`` as it is, in eval mode.

    Whatever the rule, the images follow the exact gradient: that of approximate feedback is a weak
    adversary, and a network trained against it may learn to mislead that gradient alone. All steps are made,
    also for an image that errs early. Nothing of the network changes: no statistics, no feedback, no draw.

    Args:
        size: images of which a gradient is taken at once; only so many are compiled for.
    """

    def __init__(self, learner: Learner, size: int) -> None:
        config = learner.config
        self.attack = attack_of(config.adversary)
        self.eps = parse_eps(config.adversary.eps)
        self.seed = config.seed
        self.network = learner.network
        self.task = learner.task
        self.forward = Forward(learner.network, config.compile, size, learner.device)
        self.autocast = autocast(config.precision, learner.device)

    def __call__(self, batch: Batch, key: tuple[int, int], positions: slice) -> Batch:
        """The batch with adversarial images, each within ``eps`` of its own in Linf.

        Args:
            key: epoch and step; with an image's position in the batch they decide its random start.
            positions: of these images in the batch of all processes.
        """
        attack = Pgd(self.attack, seed_from(self.seed, "adversarial", *key))
        keyed = replace(batch, samples=torch.arange(positions.start, positions.stop))
        moved = []
        with gradient_mode(self.network, Gradient.exact):
            model = AttackedModel(self.network, forward=self._outputs)
            for part in keyed.chunks(self.forward.size):
                with torch.no_grad():
                    objective = self.task.objective(part, attack.goal(), partial(self._outputs, part.images))
                moved.append(attack(attack.stages[0], model, part, objective, self.eps).images)
        return batch.with_images(torch.cat(moved))

    def _outputs(self, images: Tensor) -> Tensor:
        with self.autocast:
            return self.forward(images).to(images.dtype)


def attack_of(adversary: AdversaryConfig) -> PgdConfig:
    """The attack ``adversary.attack``; fgsm is pgd with one step of size eps and without a random start."""
    steps = parse_adversary(str(adversary.attack))
    return PgdConfig(
        name="pgd",
        eps=[adversary.eps],
        steps=steps or 1,
        step_size=adversary.step_size if steps else "eps",
        random_start=steps is not None,
        early_exit=False,
    )


def adversary_of(learner: Learner, size: int) -> Adversary | None:
    """The adversary that a network is trained against; None without adversarial training."""
    return None if learner.config.adversary.attack is None else Adversary(learner, size)
