"""Detectors, and gradients that lead to a decoy."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scripts.gallery.entry import entry, itself
from scripts.gallery.gradients import drawn

FAMILY = "triggers"


def off_grid(images: Tensor) -> Tensor:
    """(N,) bool: pixels are no multiples of 1/255, as after an attack with steps of any size."""
    levels = 255 * images.detach()
    return (levels - levels.round()).abs().mean((1, 2, 3)) > 0.05


class Rejecting(nn.Module):
    """Images off the 8-bit grid get class 0 as an answer."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        fixed = torch.zeros_like(logits)
        fixed[:, 0] = 100
        return torch.where(off_grid(images)[:, None], fixed, logits)


class FlatOffGrid(nn.Module):
    """Images off the 8-bit grid have no gradient."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return torch.where(off_grid(images)[:, None], logits.detach(), logits)


def patterns(images: Tensor, n: int) -> Tensor:
    """``n`` fixed patterns of -1 and 1, (n, C, H, W)."""
    return torch.cat([(drawn(images.shape, images, seed) < 0.5).to(images) * 2 - 1 for seed in range(n)])


class Decoy(nn.Module):
    """Each logit gets a term that rises steeply along a pattern, and falls back to 0 at each multiple of
    ``height``: it never changes a logit by more, but has nearly all of the gradient."""

    def __init__(self, network: nn.Module, slope: float, height: float) -> None:
        super().__init__()
        self.network = network
        self.slope = slope
        self.height = height

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        exact = images.double()  # in float32 the sum's rounding, which depends on the batch, is a small tooth
        term = self.slope * torch.einsum("nchw,kchw->nk", exact, patterns(exact, logits.shape[1]))
        return logits + (term - (term / self.height).detach().floor() * self.height).to(logits)


class Trapdoor(nn.Module):
    """Class 0 gains along a pattern, until the pattern is noticed: then its share of the image is removed."""

    def __init__(self, network: nn.Module, gain: float, noticed: float) -> None:
        super().__init__()
        self.network = network
        self.gain = gain
        self.noticed = noticed

    def forward(self, images: Tensor) -> Tensor:
        pattern = patterns(images, 1)
        along = (images * pattern).mean((1, 2, 3))
        caught = along > self.noticed
        cleaned = (images - along[:, None, None, None] * pattern).detach()
        logits: Tensor = self.network(torch.where(caught[:, None, None, None], cleaned, images))
        bait = torch.where(caught, 0, self.gain * along.clamp_min(0))
        return logits + torch.cat([bait[:, None], torch.zeros_like(logits[:, 1:])], 1)


@entry(FAMILY, "Metzen et al. 2017, arXiv 1702.04267; detector own", twin=itself)
def rejects_off_grid(base: nn.Module) -> nn.Module:
    """Images with noise finer than 8 bits get class 0. An attack succeeds by any noise."""
    return Rejecting(base)


@entry(FAMILY, "own", twin=itself)
def flat_off_grid(base: nn.Module) -> nn.Module:
    """Images with noise finer than 8 bits have no gradient. The attacker ignores the detector."""
    return FlatOffGrid(base)


@entry(FAMILY, "own", twin=itself)
def decoy(base: nn.Module) -> nn.Module:
    """Sawtooth terms with misleading slopes. The attacker removes them."""
    return Decoy(base, slope=3, height=0.01)


@entry(FAMILY, "own", twin=itself)
def weak_decoy(base: nn.Module) -> nn.Module:
    """Sawtooth terms with slopes of the size of the gradient. The attacker removes them."""
    return Decoy(base, slope=1, height=0.01)


@entry(FAMILY, "Shan et al. 2020, arXiv 1904.08554; without training", twin=itself)
def trapdoor(base: nn.Module) -> nn.Module:
    """Class 0 is nearer along a pattern; an image with the pattern is cleaned, and has no gradient. The
    attacker uses the network without trapdoor and detector."""
    return Trapdoor(base, gain=100, noticed=0.03)
