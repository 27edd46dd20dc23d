"""APGD-CE, APGD-T and FAB-T by torchattacks, at the settings of AutoAttack's standard version.

APGD: Croce & Hein 2020, arXiv 2003.01690. FAB: Croce & Hein 2020, arXiv 1907.02044. Where torchattacks'
defaults differ from the authors' settings (steps, targets), the latter are passed. Its class AutoAttack makes
10 steps, and is not used.
"""

from __future__ import annotations

import importlib
import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
import torchattacks
from torch import Tensor

from sstune.attacks.attack import ATTACKS, Attack, AttackResult
from sstune.attacks.attacked_model import AttackedModel
from sstune.datasets import Batch
from sstune.schema import ApgdConfig, RequestError
from sstune.tasks import Objective

PlainAttack = Callable[[Tensor, Tensor], Tensor]  # images and labels -> adversarial images
TARGETS = 9  # at most, as in AutoAttack


@contextmanager
def isolated_rng(device: torch.device) -> Iterator[None]:
    """Context that restores the process's random state and disables gradients unless the library enables
    them: an :class:`AttackedModel` redraws feedback only in forward passes with gradients."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        yield


def reference(attack: str) -> Any:
    """The package pyautoattack, AutoAttack by its authors, whose code ``attack`` runs.

    Raises:
        RequestError: it is not installed.
    """
    try:
        package = importlib.import_module("pyautoattack")
    except ImportError as error:
        raise RequestError(
            f'attack: {attack} needs one more package: pip install "sstune[autoattack]"'
        ) from error
    logging.getLogger("auto-attack").setLevel(logging.ERROR)  # attack=audit measures what it warns about
    return package


def n_targets(n_classes: int) -> int:
    """The number of target classes, which are tried in descending order of their logits."""
    return min(TARGETS, n_classes - 1)


def check_targeted_dlr(attack: str, n_classes: int) -> None:
    """Check that the loss of APGD-T is defined: it needs the four largest logits.

    Raises:
        RequestError: there are fewer than four classes.
    """
    if n_classes < 4:
        raise RequestError(
            f"attack: {attack} needs 4 classes or more, here are {n_classes}; use apgd, fab_t or square"
        )


class LibraryAttack(Attack):
    """An attack of another library on classifiers; targets are classes, and the objective is not asked.

    Every batch is seeded anew, as AutoAttack does with its stages, so that with the same seed and batches the
    attack is what it would be there.
    """

    def __call__(
        self, stage: str, model: AttackedModel, batch: Batch, objective: Objective, eps: float
    ) -> AttackResult:
        images = batch.images.clone(memory_format=torch.contiguous_format)  # it takes views
        with isolated_rng(images.device), redirect_stdout(None):  # torchattacks says where it finds no device
            attack = self.made(model, model(images), eps)
            adversarial = attack(images, batch.targets)
        return AttackResult.of_unknown_steps(adversarial)

    @abstractmethod
    def made(self, model: AttackedModel, outputs: Tensor, eps: float) -> PlainAttack:
        """The library's attack; ``outputs`` are the network's for the batch, (N, classes)."""


def on(device: torch.device, attack: Any) -> PlainAttack:
    """Set the device of torchattacks' ``attack``, which it infers from the network's parameters."""
    attack.set_device(device)
    return attack


@ATTACKS.register("apgd")
class Apgd(LibraryAttack):
    """APGD with cross-entropy."""

    config: ApgdConfig

    def made(self, model: AttackedModel, outputs: Tensor, eps: float) -> PlainAttack:
        restarts = self.config.restarts
        attack = torchattacks.APGD(model, loss="ce", n_restarts=restarts, **self.settings(eps))
        return on(outputs.device, attack)

    def settings(self, eps: float) -> dict[str, Any]:
        """The settings that both losses share."""
        config = self.config
        return {
            "norm": config.norm.value,
            "eps": eps,
            "steps": config.steps,
            "eot_iter": config.eot,
            "rho": 0.75,
            "seed": self.seed,
        }


@ATTACKS.register("apgd_t")
class ApgdT(Apgd):
    """APGD with the targeted difference-of-logits ratio, for up to nine target classes."""

    def made(self, model: AttackedModel, outputs: Tensor, eps: float) -> PlainAttack:
        n_classes, restarts = outputs.shape[1], self.config.restarts
        check_targeted_dlr(self.name, n_classes)
        attack = TargetedApgd(model, n_targets(n_classes), restarts, **self.settings(eps))
        return on(outputs.device, attack)


class TargetedApgd(torchattacks.APGD):
    """APGD that takes ``n_targets`` times ``restarts`` starts, ``restarts`` of them towards each target.

    Not torchattacks' APGDT, which in L2 makes every sample's step as long as the first sample's.
    """

    def __init__(self, model: AttackedModel, n_targets: int, restarts: int, **settings: Any) -> None:
        super().__init__(model, loss="dlr", n_restarts=n_targets * restarts, **settings)
        self.restarts = restarts
        self.starts = 0

    def attack_single_run(self, images: Tensor, labels: Tensor) -> Any:
        """One start, for all samples that are still classified correctly."""
        rank = 2 + self.starts // self.restarts  # of the target among the classes, the likeliest being 1
        self.starts += 1
        self.targets = self.get_logits(images).sort(dim=1).indices[:, -rank]
        return super().attack_single_run(images, labels)

    def dlr_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of each sample, (N,): (z_target - z_label) / (z_1st - (z_3rd + z_4th) / 2)."""
        ordered = logits.sort(dim=1).values
        gain = logits.gather(1, self.targets[:, None]) - logits.gather(1, labels[:, None])
        return gain[:, 0] / (ordered[:, -1] - 0.5 * (ordered[:, -3] + ordered[:, -4]) + 1e-12)


@ATTACKS.register("fab_t")
class FabT(LibraryAttack):
    """Targeted FAB, which minimises the distance of the adversarial image, for up to nine target classes."""

    config: ApgdConfig

    def made(self, model: AttackedModel, outputs: Tensor, eps: float) -> PlainAttack:
        attack = torchattacks.FAB(
            model,
            norm=self.config.norm.value,
            eps=eps,
            steps=self.config.steps,
            n_restarts=self.config.restarts,
            alpha_max=0.1,
            eta=1.05,
            beta=0.9,
            seed=self.seed,
            multi_targeted=True,
            n_classes=n_targets(outputs.shape[1]) + 1,
        )
        return on(outputs.device, attack)
