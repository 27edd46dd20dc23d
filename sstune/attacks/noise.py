"""Random perturbations, the baseline of all other attacks."""

from __future__ import annotations

import torch
from torch import Tensor

from sstune.attacks.ascent import random_in_ball
from sstune.attacks.attack import ATTACKS, Attack, AttackResult, BestIterates, OpenSamples
from sstune.attacks.attacked_model import AttackedModel
from sstune.copying import to_device
from sstune.datasets import Batch
from sstune.schema import NoiseConfig
from sstune.tasks import Objective


@ATTACKS.register("noise")
class Noise(Attack):
    """Many random perturbations: uniform in the Linf ball and, at even attempts, random corners of it.

    A perturbation depends on (seed, attempt, sample) alone, and is proportional to eps.
    """

    config: NoiseConfig

    @torch.no_grad()
    def __call__(
        self, stage: str, model: AttackedModel, batch: Batch, objective: Objective, eps: float
    ) -> AttackResult:
        result = batch.images.clone()
        open_ = OpenSamples(batch, objective)
        best = BestIterates(batch.images)
        for attempt in range(1, self.config.attempts + 1):
            result[open_.index] = images = self.perturbed(open_.batch, eps, attempt)
            outputs = model(images)
            best.update(open_, images, outputs)
            broken = open_.objective.is_adversarial(outputs)
            open_.note(broken, attempt)
            open_.close(broken)
            if len(open_) == 0:
                break
        return AttackResult(best.of(result), open_.steps_to_success)

    def perturbed(self, batch: Batch, eps: float, attempt: int) -> Tensor:
        """Images of the ``attempt``-th attempt, counted from 1; at even ones every value moves by eps."""
        key = ("noise", attempt)
        noise = random_in_ball(batch.images.shape, self.config.norm, self.seed, key, batch.samples)
        if attempt % 2 == 0:
            noise = noise.sign()
        return (batch.images + eps * to_device(noise, batch.images.device)).clamp(0, 1)
