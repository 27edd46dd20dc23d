"""Some images take a masked branch, the others an honest one."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from scripts.faults import FlatReLU
from scripts.gallery.content import keys, uniform
from scripts.gallery.entry import entry, itself, load
from scripts.gallery.filters import Flat

FAMILY = "mixtures"


class Mixed(nn.Module):
    """Images of which :meth:`is_masked` says so take the first network, the others the second."""

    def __init__(self, masked: nn.Module, honest: nn.Module) -> None:
        super().__init__()
        self.masked = masked
        self.honest = honest

    def forward(self, images: Tensor) -> Tensor:
        return torch.where(self.is_masked(images)[:, None], self.masked(images), self.honest(images))

    @abstractmethod
    def is_masked(self, images: Tensor) -> Tensor:
        """(N,) bool."""


class ByContent(Mixed):
    """A ``share`` of all images, by their hash, is masked."""

    def __init__(self, masked: nn.Module, honest: nn.Module, share: float) -> None:
        super().__init__(masked, honest)
        self.share = share

    def is_masked(self, images: Tensor) -> Tensor:
        return uniform(keys(images), (1,), images)[:, 0] < self.share


class ByBrightness(Mixed):
    """Images darker than the mean of the dataset are masked; ``mean`` is the base network's."""

    mean: Tensor

    def __init__(self, masked: nn.Module, honest: nn.Module, base: nn.Module) -> None:
        super().__init__(masked, honest)
        self.register_buffer("mean", base.get_buffer("mean").mean().clone())

    def is_masked(self, images: Tensor) -> Tensor:
        return images.detach().mean((1, 2, 3)) < self.mean


class FlatWhereSure(nn.Module):
    """No gradient where the likeliest class leads by ``margin``."""

    def __init__(self, network: nn.Module, margin: float) -> None:
        super().__init__()
        self.network = network
        self.margin = margin

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        first, second = logits.detach().topk(2, 1).values.unbind(1)
        return torch.where((first - second > self.margin)[:, None], logits.detach(), logits)


class Contrast(nn.Module):
    """Pixels are drawn towards 0 and 1 by a logistic function: small changes of either have little effect."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.sigmoid(10 * (images - 0.5))


def _flat(base: nn.Module) -> nn.Module:
    return nn.Sequential(FlatReLU(), base)


def _robust(base: nn.Module) -> nn.Module:
    return nn.Sequential(Contrast(), base)


def _with_trained(base: nn.Module) -> nn.Module:
    plain = load("CHECKPOINT")
    return ByBrightness(plain, base, plain)


@entry(FAMILY, "own", twin=itself)
def dark_flat(base: nn.Module) -> nn.Module:
    """Dark images have no gradient. The attacker removes this branch, as for all of this family."""
    return ByBrightness(_flat(base), base, base)


@entry(FAMILY, "own", twin=itself)
def half_flat(base: nn.Module) -> nn.Module:
    """Half of all images, by their hash, have no gradient; an attack passes through others."""
    return ByContent(_flat(base), base, 0.5)


@entry(FAMILY, "own", twin=itself)
def nearly_all_flat(base: nn.Module) -> nn.Module:
    """90 % of all images, by their hash, have no gradient."""
    return ByContent(_flat(base), base, 0.9)


@entry(FAMILY, "own", twin=itself)
def tenth_flat(base: nn.Module) -> nn.Module:
    """A tenth of all images, by their hash, have no gradient."""
    return ByContent(_flat(base), base, 0.1)


@entry(FAMILY, "own", twin=itself)
def sure_flat(base: nn.Module) -> nn.Module:
    """Images of which the network is sure (a margin of 12) have no gradient."""
    return FlatWhereSure(base, 12)


@entry(FAMILY, "own", twin=itself)
def very_sure_flat(base: nn.Module) -> nn.Module:
    """Images of which the network is very sure (a margin of 14) have no gradient."""
    return FlatWhereSure(base, 14)


@entry(FAMILY, "own", twin=lambda base: ByBrightness(base, _robust(base), base))
def robust_and_flat(base: nn.Module) -> nn.Module:
    """Bright images are honestly robust, by contrast; dark ones only have no gradient."""
    return ByBrightness(_flat(base), _robust(base), base)


@entry(FAMILY, "own", twin=_with_trained, base="ADVERSARIAL")
def trained_and_flat(base: nn.Module) -> nn.Module:
    """Bright images are answered by the adversarially trained network of ``$ADVERSARIAL``, dark ones by the
    base network without its gradient."""
    plain = load("CHECKPOINT")
    return ByBrightness(Flat(plain), base, plain)
