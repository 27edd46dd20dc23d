"""Random outputs or gradients; each sample has its own draw."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.gallery.entry import entry
from scripts.gallery.gradients import Changed
from scripts.gallery.rewiring import STAGES, followed

FAMILY = "random"
EOT = 4


class InputNoise(nn.Module):
    """Gaussian noise is added to images."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def forward(self, images: Tensor) -> Tensor:
        return images + self.std * torch.randn_like(images)


class Resize(nn.Module):
    """Each image is scaled to a random size of at least ``smallest`` of its side, at a random place."""

    def __init__(self, smallest: float) -> None:
        super().__init__()
        self.smallest = smallest

    def forward(self, images: Tensor) -> Tensor:
        draw = torch.rand(3, len(images)).to(images)
        scale = self.smallest + (1 - self.smallest) * draw[0]
        maps = images.new_zeros(len(images), 2, 3)  # from the output's coordinates in [-1,1] to the image's
        maps[:, 0, 0] = maps[:, 1, 1] = 1 / scale
        maps[:, :, 2] = ((2 * draw[1:] - 1) * (1 / scale - 1)).T
        grid = F.affine_grid(maps, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)


class StochasticPruning(nn.Module):
    """Activations are drawn by their magnitude, ``share`` times their number with replacement; those never
    drawn are zero, the others are divided by the probability to be drawn."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, inputs: Tensor) -> Tensor:
        magnitude = inputs.detach().abs().flatten(1)
        each = magnitude / magnitude.sum(1, keepdim=True).clamp_min(1e-12)
        kept = (1 - (1 - each) ** (self.share * each.shape[1])).view_as(inputs)
        return inputs * (torch.rand_like(inputs) < kept) / kept.clamp_min(1e-12)


class DropChannels(nn.Module):
    """A random ``share`` of a sample's channels is zero."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, inputs: Tensor) -> Tensor:
        kept = torch.rand_like(inputs[:, :, :1, :1]) >= self.share
        return inputs * kept / (1 - self.share)


class RandomlyFlipped(Changed):
    """The gradient's sign is flipped at a random ``share`` of the pixels."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def change(self, gradient: Tensor) -> Tensor:
        return gradient.where(torch.rand_like(gradient) >= self.share, -gradient)


@entry(FAMILY, "Liu et al. 2018, arXiv 1712.00673", eot=EOT)
def input_noise(base: nn.Module) -> nn.Module:
    """Gaussian noise of 0.15 on the image. The attacker averages over draws, as for all of this family."""
    return nn.Sequential(InputNoise(0.15), base)


@entry(FAMILY, "Xie et al. 2018, arXiv 1711.01991", eot=EOT)
def random_resize(base: nn.Module) -> nn.Module:
    """Images scaled to a random size and padded at random."""
    return nn.Sequential(Resize(0.8), base)


@entry(FAMILY, "Dhillon et al. 2018, arXiv 1803.01442", eot=EOT)
def stochastic_pruning(base: nn.Module) -> nn.Module:
    """Stochastic activation pruning behind each stage."""
    return followed(base, STAGES, lambda: StochasticPruning(1.0))


@entry(FAMILY, "own", eot=EOT)
def random_subnetwork(base: nn.Module) -> nn.Module:
    """A random tenth of the channels behind each stage is missing."""
    return followed(base, STAGES, lambda: DropChannels(0.1))


@entry(FAMILY, "own", eot=EOT)
def random_gradient(base: nn.Module) -> nn.Module:
    """Only the gradient is random: its sign is wrong at 30 % of the pixels, others each time."""
    return nn.Sequential(RandomlyFlipped(0.3), base)
