"""Robust accuracy of a network under a named gradient, sample by sample, with validity always checked."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sstune.attacks.registry import Attack
from sstune.datasets import Split, batches
from sstune.rules import eval_mode, exact_gradients
from sstune.schema import Gradient

TOLERANCE = 1e-6
CHECKED_AT_ZERO = 256


class InvalidAttack(RuntimeError):
    """An attack broke its own rules (check D0): its figures mean nothing."""


@contextmanager
def attacked_through(network: nn.Module, gradient: Gradient) -> Iterator[None]:
    """Inside, a backward pass yields ``gradient`` with respect to the images only, in eval mode."""
    requires_grad = [parameter.requires_grad for parameter in network.parameters()]
    exact = exact_gradients(network) if gradient is Gradient.exact else nullcontext()
    try:
        network.requires_grad_(False)
        with eval_mode(network), exact:
            yield
    finally:
        for parameter, before in zip(network.parameters(), requires_grad, strict=True):
            parameter.requires_grad_(before)


def robust(
    network: nn.Module,
    attack: Attack,
    split: Split,
    samples: Tensor,
    clean: Tensor,
    eps: float,
    gradient: Gradient,
    batch_size: int,
    device: torch.device,
) -> Tensor:
    """Which samples stay right under ``attack``; only those right without it are attacked.

    Args:
        split: N images; ``samples``, (N,), are their indices in the full test split.
        clean: (N,) bool, right before the attack.

    Returns:
        (N,) bool on the CPU.

    Raises:
        InvalidAttack: an image left [0,1] or the ball, or is not finite.
    """
    index = clean.nonzero().flatten()
    still_right = clean.clone()
    bar = tqdm(
        desc=f"{attack.name} {gradient}", total=len(index), leave=False, disable=not sys.stderr.isatty()
    )
    with attacked_through(network, gradient):
        for images, labels, part in _batches(split.take(index), index, batch_size, device):
            adversarial = attack(network, images, labels, eps, samples[part].tolist())
            check_images(adversarial, images, eps)
            with torch.no_grad():
                still_right[part] = (network(adversarial).argmax(1) == labels).cpu()
            bar.update(len(part))
    bar.close()
    return still_right


def _batches(
    split: Split, index: Tensor, batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    parts = index.split(batch_size) if len(index) else ()  # splitting nothing gives one empty part
    for (images, labels), part in zip(batches(split, batch_size, device), parts, strict=True):
        yield images, labels, part


def check_images(adversarial: Tensor, images: Tensor, eps: float) -> None:
    """Check D0: finite, in [0,1], and within ``eps`` of the originals.

    Raises:
        InvalidAttack: saying what is violated and by how much.
    """
    if not torch.isfinite(adversarial).all():
        raise InvalidAttack("D0: an adversarial image is not finite")
    low, high = float(adversarial.min()), float(adversarial.max())
    if low < 0 or high > 1:
        raise InvalidAttack(f"D0: an adversarial image leaves [0, 1]: {low} to {high}")
    distance = float((adversarial - images).abs().max())
    if distance > eps + TOLERANCE:
        raise InvalidAttack(f"D0: an adversarial image is {distance} away, eps is {eps}")


def check_zero_eps(
    network: nn.Module,
    attack: Attack,
    split: Split,
    samples: Tensor,
    clean: Tensor,
    gradient: Gradient,
    device: torch.device,
) -> None:
    """Check D0: with eps = 0 every sample (of the first 256) is judged as without an attack.

    Raises:
        InvalidAttack: a judgement differs, so the attack does more than move images in its ball.
    """
    n = min(CHECKED_AT_ZERO, len(split))
    first = torch.arange(n)
    kept = robust(
        network, attack, split.take(first), samples[:n], clean[:n], 0.0, gradient, CHECKED_AT_ZERO, device
    )
    if not torch.equal(kept, clean[:n]):
        changed = int((kept != clean[:n]).sum())
        raise InvalidAttack(
            f"D0: {attack.name} with eps = 0 changes the judgement of {changed} of {n} samples"
        )
