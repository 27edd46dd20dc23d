"""Images are filtered first. The gradient is the true one, unless an entry says otherwise."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.gallery.entry import entry

FAMILY = "filters"


def _neighbours(images: Tensor) -> Tensor:
    """The 3x3 neighbourhood of each pixel, (N, C, H, W, 9); the border is repeated."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    return padded.unfold(2, 3, 1).unfold(3, 3, 1).flatten(4)


class Median(nn.Module):
    """The median of each pixel and its four neighbours."""

    def forward(self, images: Tensor) -> Tensor:
        return _neighbours(images)[..., [1, 3, 4, 5, 7]].median(-1).values


class Blur(nn.Module):
    """A Gaussian of standard deviation ``width`` pixels over each pixel's 3x3 neighbourhood."""

    def __init__(self, width: float) -> None:
        super().__init__()
        self.width = width

    def forward(self, images: Tensor) -> Tensor:
        place = torch.arange(-1, 2).to(images)
        distance = (place**2 + place[:, None] ** 2).flatten()
        return _neighbours(images) @ (-distance / (2 * self.width**2)).softmax(0)


class Smooth(nn.Module):
    """Five steps of descent on the total variation, sum of sqrt(difference^2 + 0.01) over neighbours."""

    def forward(self, images: Tensor) -> Tensor:
        for _ in range(5):
            differences = _neighbours(images)[..., 1::2] - images[..., None]  # up, left, right, down
            images = images + 0.01 * (differences / (differences**2 + 0.01).sqrt()).sum(-1)
        return images


class Flat(nn.Module):
    """A filter whose derivative is 0."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.layer(images)
        return outputs.detach()


def _after_median(base: nn.Module) -> nn.Module:
    return nn.Sequential(Median(), base)


@entry(FAMILY, "Xu et al. 2018, arXiv 1704.01155")
def median(base: nn.Module) -> nn.Module:
    """A median filter: its gradient has kinks. The attacker takes more steps."""
    return _after_median(base)


@entry(FAMILY, "Xu et al. 2018, arXiv 1704.01155", twin=_after_median)
def flat_median(base: nn.Module) -> nn.Module:
    """A median filter that another library computes, without a derivative. The attacker differentiates it."""
    return nn.Sequential(Flat(Median()), base)


@entry(FAMILY, "own")
def gaussian_blur(base: nn.Module) -> nn.Module:
    """A Gaussian filter. The attacker takes more steps."""
    return nn.Sequential(Blur(0.5), base)


@entry(FAMILY, "Guo et al. 2018, arXiv 1711.00117; unrolled")
def total_variation(base: nn.Module) -> nn.Module:
    """The total variation is reduced by unrolled descent. The attacker takes more steps."""
    return nn.Sequential(Smooth(), base)
