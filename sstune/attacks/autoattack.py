"""AutoAttack, standard version, as its authors wrote it: the package pyautoattack, an extra.

Croce & Hein 2020, arXiv 2003.01690.
"""

from __future__ import annotations

import copy
from typing import Any, Self

import torch

from sstune.attacks.attack import ATTACKS, Attack, AttackResult
from sstune.attacks.attacked_model import AttackedModel
from sstune.attacks.library import check_targeted_dlr, isolated_rng, n_targets, reference
from sstune.attacks.square import check_size
from sstune.datasets import Batch
from sstune.schema import LibraryConfig
from sstune.tasks import Objective


@ATTACKS.register("autoattack")
class Autoattack(Attack):
    """The four attacks with AutoAttack's settings and seeds, each on the samples still classified correctly.

    They run as stages, so that the attack can resume after each batch. The outcome of each sample equals that
    of the package's ``run_standard_evaluation``.

    Raises:
        RequestError: pyautoattack is not installed.
    """

    stages = ("apgd-ce", "apgd-t", "fab-t", "square")

    def __init__(self, config: LibraryConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.package = reference(self.name)
        self.steps, self.queries = 100, 5000

    def with_tiny_budget(self) -> Self:
        few = copy.copy(self)
        few.steps = few.queries = 2
        return few

    def __call__(
        self, stage: str, model: AttackedModel, batch: Batch, objective: Objective, eps: float
    ) -> AttackResult:
        check_size(self.name, batch.images, self.config.norm)
        images = batch.images.clone(memory_format=torch.contiguous_format)  # it takes views
        with isolated_rng(images.device):
            library = self.standard(model, model(images).shape[1], eps, images.device)
            attacks = (library.apgd, library.apgd_targeted, library.fab, library.square)
            attack = dict(zip(self.stages, attacks, strict=True))[stage]
            adversarial = attack.perturb(images, batch.targets)
        return AttackResult.of_unknown_steps(adversarial)

    def standard(self, model: AttackedModel, n_classes: int, eps: float, device: Any) -> Any:
        """pyautoattack's AutoAttack; with fewer than ten classes, the number of targets is reduced.

        Raises:
            RequestError: there are fewer than four classes.
        """
        check_targeted_dlr(self.name, n_classes)
        norm = self.config.norm.value
        library = self.package.AutoAttack(
            model, norm=norm, eps=eps, version="standard", seed=self.seed, device=device
        )
        library.fab.targeted = True
        for attack in (library.apgd, library.apgd_targeted, library.fab):
            attack.n_iter = self.steps
        for attack in (library.apgd_targeted, library.fab):
            attack.n_target_classes = n_targets(n_classes)
        library.square.n_queries = self.queries
        return library
