"""FGSM and PGD in the Linf ball, built from torchattacks' gradient-sign step.

All take images in [0,1] and return images in [0,1] with ``|delta| <= eps``. A sample that is misclassified
at some iterate keeps that iterate: a later step may undo the success (Pintor et al. 2021).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torchattacks
from torch import Tensor, nn

from sstune.attacks.registry import ATTACKS, Attack
from sstune.schema import PgdConfig
from sstune.seeding import seed_from
from sstune.validation import parse_step_size


class Recorded(nn.Module):
    """Passes images on and keeps the outputs, so that a step's forward also says what was still right.

    It also hides the network's class, ``mean`` and ``std``: from these torchattacks may conclude that the
    network expects normalised images (3.5 does for a class called RobModel), and normalise again.
    """

    outputs: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.training = network.training  # torchattacks restores this mode to the whole network

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.network(images)
        self.outputs = outputs.detach()
        return outputs


@ATTACKS.register("fgsm")
class Fgsm(Attack):
    """One step of size eps along the gradient's sign (Goodfellow et al. 2015, arXiv 1412.6572)."""

    def __call__(
        self, network: nn.Module, images: Tensor, labels: Tensor, eps: float, samples: Sequence[int]
    ) -> Tensor:
        step = torchattacks.FGSM(Recorded(network), eps=eps)
        return project(step(images, labels), images, eps)


@ATTACKS.register("pgd")
class Pgd(Attack):
    """Projected gradient descent (Madry et al. 2018, arXiv 1706.06083) from random starts in the ball.

    The start of a sample depends on (seed, restart, sample) alone, and is proportional to eps.
    """

    def __init__(self, config: PgdConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.steps = config.steps
        self.step_size = config.step_size
        self.restarts = config.restarts
        self.random_start = config.random_start

    def __call__(
        self, network: nn.Module, images: Tensor, labels: Tensor, eps: float, samples: Sequence[int]
    ) -> Tensor:
        adversarial = images.clone()
        open_ = torch.arange(len(images), device=images.device)
        for restart in range(self.restarts):
            keys = [samples[i] for i in open_.tolist()]
            start = self.start(images[open_], eps, keys, restart)
            adversarial[open_], broken = self.descend(network, images[open_], labels[open_], start, eps)
            open_ = open_[~broken]
            if len(open_) == 0:
                break
        return adversarial

    def start(self, images: Tensor, eps: float, samples: Sequence[int], restart: int) -> Tensor:
        """Uniform in the ball around each image, clamped to [0,1]."""
        if not self.random_start:
            return images.clone()
        noise = torch.empty(images.shape)
        for row, sample in zip(noise, samples, strict=True):
            generator = torch.Generator().manual_seed(seed_from(self.seed, "pgd", restart, int(sample)))
            row.uniform_(-1, 1, generator=generator)
        return project(images + eps * noise.to(images), images, eps)

    def descend(
        self, network: nn.Module, images: Tensor, labels: Tensor, start: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """``steps`` projected steps from ``start``: the final images, and which are misclassified."""
        recorded = Recorded(network)
        fgsm = torchattacks.FGSM(recorded, eps=parse_step_size(self.step_size, eps))
        result = start.clone()
        open_ = torch.arange(len(images), device=images.device)
        for _ in range(self.steps):
            stepped = fgsm(result[open_], labels[open_])
            right = recorded.outputs.argmax(1) == labels[open_]
            open_ = open_[right]
            if len(open_) == 0:
                break
            result[open_] = project(stepped[right], images[open_], eps)
        with torch.no_grad():
            broken = network(result).argmax(1) != labels
        return result, broken


def project(adversarial: Tensor, images: Tensor, eps: float) -> Tensor:
    """The nearest images inside the Linf ball of radius eps around ``images`` and inside [0,1]."""
    return (images + (adversarial - images).clamp(-eps, eps)).clamp(0, 1)
