"""Step functions in the network: autograd's derivative is 0."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from scripts.faults import Quantise
from scripts.gallery.entry import entry, itself
from scripts.gallery.rewiring import followed

FAMILY = "steps"


class Rounded(nn.Module):
    """Round to multiples of ``step``.

    Args:
        straight: the derivative is 1 (straight-through, Bengio et al. 2013, arXiv 1308.3432); otherwise 0.
    """

    def __init__(self, step: float, straight: bool = False) -> None:
        super().__init__()
        self.step = step
        self.straight = straight

    def forward(self, values: Tensor) -> Tensor:
        rounded = (values / self.step).round() * self.step
        return values + (rounded - values).detach() if self.straight else rounded


class Jpeg(nn.Module):
    """The discrete cosine transform of blocks, at most 8x8, rounded to steps that grow with frequency."""

    def forward(self, images: Tensor) -> Tensor:
        n, channels, height, width = images.shape
        side = math.gcd(8, math.gcd(height, width))
        place = torch.arange(side).to(images)
        cosines = torch.cos(math.pi * (place + 0.5) * place[:, None] / side) * (2 / side) ** 0.5
        cosines[0] /= 2**0.5
        blocks = images.reshape(n, channels, height // side, side, width // side, side).transpose(3, 4)
        step = 0.05 * (1 + place + place[:, None])
        rounded = ((cosines @ blocks @ cosines.T) / step).round() * step
        return (cosines.T @ rounded @ cosines).transpose(3, 4).reshape(images.shape)


class Thermometer(nn.Module):
    """Each pixel is encoded by ``levels`` comparisons, and decoded by their mean."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, images: Tensor) -> Tensor:
        thresholds = (torch.arange(self.levels).to(images) + 0.5) / self.levels
        return (images[..., None] > thresholds).to(images).mean(-1)


class Binary(nn.Module):
    """Each activation is 0, or, where it exceeds the sample's mean, twice this mean."""

    def forward(self, inputs: Tensor) -> Tensor:
        mean = inputs.detach().mean((1, 2, 3), keepdim=True)
        return 2 * mean * (inputs > mean)


@entry(FAMILY, "own: scripts/faults.py", twin=itself)
def quantised_32(base: nn.Module) -> nn.Module:
    """Images in 32 levels. The attacker takes rounding for the identity, as for all steps."""
    return nn.Sequential(Quantise(), base)


@entry(FAMILY, "Xu et al. 2018, arXiv 1704.01155", twin=itself)
def quantised_8(base: nn.Module) -> nn.Module:
    """Images in 8 levels, a bit depth of 3."""
    return nn.Sequential(Rounded(1 / 7), base)


@entry(FAMILY, "Xu et al. 2018, arXiv 1704.01155", twin=itself)
def quantised_4(base: nn.Module) -> nn.Module:
    """Images in 4 levels, a bit depth of 2."""
    return nn.Sequential(Rounded(1 / 3), base)


@entry(FAMILY, "Bengio et al. 2013, arXiv 1308.3432")
def quantised_8_straight(base: nn.Module) -> nn.Module:
    """Images in 8 levels with derivative 1. The attacker needs no other gradient."""
    return nn.Sequential(Rounded(1 / 7, straight=True), base)


@entry(FAMILY, "Guo et al. 2018, arXiv 1711.00117; transform own", twin=itself)
def jpeg(base: nn.Module) -> nn.Module:
    """Rounded cosine transform of the image."""
    return nn.Sequential(Jpeg(), base)


@entry(FAMILY, "Buckman et al. 2018 (ICLR), S18Su--CW", twin=itself)
def thermometer(base: nn.Module) -> nn.Module:
    """A thermometer code of 16 levels in front of the base network."""
    return nn.Sequential(Thermometer(16), base)


@entry(FAMILY, "own", twin=itself)
def rounded_activations(base: nn.Module) -> nn.Module:
    """The first stage's activations are rounded to multiples of 1/4."""
    return followed(base, ("backbone.layer1",), lambda: Rounded(0.25))


@entry(FAMILY, "Galloway et al. 2018, arXiv 1711.00449; of one layer", twin=itself)
def binary_features(base: nn.Module) -> nn.Module:
    """The last stage's activations are binary; only their scale has a derivative elsewhere, here cut."""
    return followed(base, ("backbone.layer3",), Binary)
