"""AutoAttack, standard version, by its authors' own code: the package pyautoattack, an extra.

Croce & Hein 2020, arXiv 2003.01690.
"""

from __future__ import annotations

import copy
from typing import Any, Self

import torch

from sstune.attacks.attack import ATTACKS, Attack, Attempt
from sstune.attacks.library import check_targeted_dlr, kept_apart, n_targets, reference
from sstune.attacks.square import check_size
from sstune.attacks.subject import Subject
from sstune.datasets import Batch
from sstune.schema import LibraryConfig
from sstune.tasks import Objective


@ATTACKS.register("autoattack")
class Autoattack(Attack):
    """Its four attacks, at its settings and seeded as it seeds them, each on the samples still right.

    The cascade is that of every attack here, which can go on after each batch. What comes of each sample is
    what comes of its ``run_standard_evaluation``.

    Raises:
        RequestError: pyautoattack is not installed.
    """

    parts = ("apgd-ce", "apgd-t", "fab-t", "square")

    def __init__(self, config: LibraryConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.package = reference(self.name)
        self.steps, self.queries = 100, 5000

    def shortened(self) -> Self:
        few = copy.copy(self)
        few.steps = few.queries = 2
        return few

    def __call__(
        self, part: str, subject: Subject, batch: Batch, objective: Objective, eps: float
    ) -> Attempt:
        check_size(self.name, batch.images, self.config.norm)
        images = batch.images.clone(memory_format=torch.contiguous_format)  # it takes views
        with kept_apart(images.device):
            library = self.standard(subject, subject(images).shape[1], eps, images.device)
            attacks = (library.apgd, library.apgd_targeted, library.fab, library.square)
            attack = dict(zip(self.parts, attacks, strict=True))[part]
            adversarial = attack.perturb(images, batch.targets)
        return Attempt.of_unknown_effort(adversarial)

    def standard(self, subject: Subject, n_classes: int, eps: float, device: Any) -> Any:
        """pyautoattack's AutoAttack; with fewer than ten classes it is told how many targets there are.

        Raises:
            RequestError: there are fewer than four classes.
        """
        check_targeted_dlr(self.name, n_classes)
        norm = self.config.norm.value
        library = self.package.AutoAttack(
            subject, norm=norm, eps=eps, version="standard", seed=self.seed, device=device
        )
        library.fab.targeted = True
        for attack in (library.apgd, library.apgd_targeted, library.fab):
            attack.n_iter = self.steps
        for attack in (library.apgd_targeted, library.fab):
            attack.n_target_classes = n_targets(n_classes)
        library.square.n_queries = self.queries
        return library
