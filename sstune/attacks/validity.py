"""Check D0, which every attack must pass, and rounding to 8 bits within the ball."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sstune.attacks.steps import length
from sstune.schema import Norm

TOLERANCE = 1e-6
SAME = 1e-3  # of outputs, relative to the largest; float32 rounding is far below


class InvalidAttack(RuntimeError):
    """An attack violates its constraints (check D0), so that its figures are invalid."""


def check_images(adversarial: Tensor, images: Tensor, eps: float, norm: Norm = Norm.Linf) -> None:
    """Check D0: adversarial images have the originals' shape and are finite, in [0,1] and within ``eps``.

    Raises:
        InvalidAttack: saying what is violated and by how much.
    """
    if adversarial.shape != images.shape:
        raise InvalidAttack(f"D0: images of shape {tuple(images.shape)} became {tuple(adversarial.shape)}")
    lowest, highest = adversarial.aminmax()  # NaN if any value is
    furthest = distance(adversarial, images, norm)
    low, high, found = torch.stack([lowest, highest, furthest]).tolist()  # the host waits once
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InvalidAttack("D0: an adversarial image is not finite")
    if low < 0 or high > 1:
        raise InvalidAttack(f"D0: an adversarial image leaves [0, 1]: {low} to {high}")
    if found > eps * (1 + TOLERANCE) + TOLERANCE:
        raise InvalidAttack(f"D0: an adversarial image is {found} away, eps is {eps}")


def distance(adversarial: Tensor, images: Tensor, norm: Norm) -> Tensor:
    """The largest distance of an image from its original, in ``norm``; a 0-d tensor."""
    delta = adversarial - images
    return delta.abs().max() if norm is Norm.Linf else length(delta).max()


def differ(one: Tensor, other: Tensor) -> bool:
    """Whether outputs, or gradients, of the same images differ by more than rounding."""
    return bool((one - other).abs().max().double() > SAME * one.abs().max().double())


def to_8bit(adversarial: Tensor, images: Tensor, eps: float, norm: Norm) -> Tensor:
    """Adversarial images with every value rounded to a multiple of 1/255, still within ``eps`` of ``images``.

    Linf: to the nearest multiple inside the ball. L2: towards the original, so that no pixel moves further
    away. The originals are such multiples themselves.
    """
    slack = 1e-4  # in grey levels, for what a quotient by 255 loses
    originals, steps = (images * 255).round(), adversarial * 255 - images * 255
    if norm is Norm.Linf:
        most = math.floor(eps * 255 + slack)
        whole = steps.round().clamp(-most, most)
    else:
        whole = (steps.abs() + slack).floor()
        outside = length(whole) > 255 * eps * (1 + TOLERANCE)  # by many pixels' slack
        whole = torch.where(outside, steps.abs().floor(), whole) * steps.sign()
    return (originals + whole).clamp(0, 255) / 255
