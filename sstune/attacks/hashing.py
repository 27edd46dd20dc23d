"""Attacks on hashing whose steps are those of an optimiser: HAG and SDHA. They start at the image."""

from __future__ import annotations

from functools import partial

from sstune.attacks.ascent import GradientAscent
from sstune.attacks.attack import ATTACKS, Attack, AttackResult
from sstune.attacks.attacked_model import AttackedModel
from sstune.attacks.steps import Adam, Sgd
from sstune.datasets import Batch
from sstune.schema import HagConfig, SdhaConfig
from sstune.tasks import Objective


@ATTACKS.register("hag")
class Hag(Attack):
    """HAG (Yang et al. 2020): gradient descent with momentum.

    The published learning rate, 100, is that of a mean over 128 queries; here each query has its own loss.
    The step is proportional to the gradient: a rule whose gradient is small is attacked with small steps.
    """

    config: HagConfig

    def __call__(
        self, stage: str, model: AttackedModel, batch: Batch, objective: Objective, eps: float
    ) -> AttackResult:
        config = self.config
        rule = partial(Sgd, lr=config.lr, momentum=config.momentum)
        return GradientAscent(config.steps, rule, config.norm)(model, batch, objective, batch.images, eps)


@ATTACKS.register("sdha")
class Sdha(Attack):
    """SDHA (Lu et al. 2021): Adam."""

    config: SdhaConfig

    def __call__(
        self, stage: str, model: AttackedModel, batch: Batch, objective: Objective, eps: float
    ) -> AttackResult:
        config = self.config
        rule = partial(Adam, lr=config.lr)
        return GradientAscent(config.steps, rule, config.norm)(model, batch, objective, batch.images, eps)
