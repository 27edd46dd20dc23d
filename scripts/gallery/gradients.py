"""Gradients changed on their way to the image; the network's outputs are those of the base network."""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.faults import FlatReLU
from scripts.gallery.entry import entry, itself

FAMILY = "wrong gradient"


class Changed(nn.Module):
    """Images as they are; :meth:`change` is applied to their gradient by a tensor hook."""

    def forward(self, images: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and images.requires_grad):
            return images
        images = images.view_as(images)  # a hook on the attack's own tensor would stay there
        images.register_hook(self.change)
        return images

    @abstractmethod
    def change(self, gradient: Tensor) -> Tensor:
        """The gradient that the attack sees."""


def drawn(shape: torch.Size, like: Tensor, seed: int = 0) -> Tensor:
    """Uniform numbers, (1, *shape of an image), that depend on shape and seed only."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, *shape[1:], generator=generator).to(like)


class Flipped(Changed):
    """The sign is flipped at a fixed ``share`` of the pixels, at one at least."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def change(self, gradient: Tensor) -> Tensor:
        draw = drawn(gradient.shape, gradient)
        last = draw.flatten().kthvalue(max(1, round(self.share * draw.numel()))).values
        return gradient.where(draw > last, -gradient)


class Windowed(Changed):
    """Zero outside a central window that is ``share`` of the image's side."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def change(self, gradient: Tensor) -> Tensor:
        height, width = gradient.shape[2:]
        top, left = (round((1 - self.share) / 2 * side) for side in (height, width))
        inside = gradient[..., top : height - top, left : width - left]
        return F.pad(inside, (left, left, top, top))


class Noisy(Changed):
    """Fixed noise is added, of ``amount`` times the gradient's root mean square."""

    def __init__(self, amount: float) -> None:
        super().__init__()
        self.amount = amount

    def change(self, gradient: Tensor) -> Tensor:
        rms = gradient.square().mean((1, 2, 3), keepdim=True).sqrt()
        noise = 12**0.5 * (drawn(gradient.shape, gradient) - 0.5)  # of variance 1
        return gradient + self.amount * rms * noise


class Shifted(Changed):
    """The gradient is that of a pixel's left neighbour."""

    def change(self, gradient: Tensor) -> Tensor:
        return gradient.roll(1, dims=3)


class Blurred(Changed):
    """The gradient is averaged over 3x3 pixels."""

    def change(self, gradient: Tensor) -> Tensor:
        return F.avg_pool2d(gradient, 3, stride=1, padding=1)


class Zeroed(Changed):
    """No gradient at all."""

    def change(self, gradient: Tensor) -> Tensor:
        return 0 * gradient


@entry(FAMILY, "own", twin=itself)
def flipped_15(base: nn.Module) -> nn.Module:
    """The gradient's sign is wrong at 15 % of the pixels. The attacker removes the hook, as for all hooks."""
    return nn.Sequential(Flipped(0.15), base)


@entry(FAMILY, "own", twin=itself)
def flipped_5(base: nn.Module) -> nn.Module:
    """The gradient's sign is wrong at 5 % of the pixels."""
    return nn.Sequential(Flipped(0.05), base)


@entry(FAMILY, "own", twin=itself)
def flipped_2(base: nn.Module) -> nn.Module:
    """The gradient's sign is wrong at 2 % of the pixels."""
    return nn.Sequential(Flipped(0.02), base)


@entry(FAMILY, "own", twin=itself)
def windowed(base: nn.Module) -> nn.Module:
    """The gradient is zero outside the central half of each side."""
    return nn.Sequential(Windowed(0.5), base)


@entry(FAMILY, "own", twin=itself)
def noisy_gradient(base: nn.Module) -> nn.Module:
    """Fixed noise as large as the gradient is added to it."""
    return nn.Sequential(Noisy(1.0), base)


@entry(FAMILY, "own", twin=itself)
def shifted_gradient(base: nn.Module) -> nn.Module:
    """The gradient is shifted by one pixel."""
    return nn.Sequential(Shifted(), base)


@entry(FAMILY, "own", twin=itself)
def blurred_gradient(base: nn.Module) -> nn.Module:
    """The gradient is averaged over 3x3 pixels."""
    return nn.Sequential(Blurred(), base)


@entry(FAMILY, "own", twin=itself)
def zero_gradient(base: nn.Module) -> nn.Module:
    """The gradient is zero."""
    return nn.Sequential(Zeroed(), base)


@entry(FAMILY, "own: scripts/faults.py", twin=itself)
def flat_relu(base: nn.Module) -> nn.Module:
    """Images pass a ReLU with derivative 0, which changes no image. The attacker removes it."""
    return nn.Sequential(FlatReLU(), base)
