"""Networks with a planted fault each, for the audit to find: ``model.factory=scripts.faults:saturated``.

All are the ResNet-20 for CIFAR-10 whose weights the file ``$CHECKPOINT`` holds, so each withstands as little
as any network of its kind; the faults only make attacks fail, or figures mean nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sstune.backbones import Network, build, load_third_party
from sstune.composition import compose


def resnet20() -> Network:
    """The network as it is, without a fault."""
    config = compose("attack", ["experiment=cifar10_jpeg", "dataset.root=."])
    network = build(config.backbone, (3, 32, 32), 10, config.dataset.mean, config.dataset.std, weights=False)
    load_third_party(network, Path(os.environ["CHECKPOINT"]))
    return network.eval()


class Times10000(nn.Module):
    """Of logits: the same classes, but their softmax has no gradient left in float32."""

    def forward(self, logits: Tensor) -> Tensor:
        return 10_000 * logits


class RandomResize(nn.Module):
    """Images are scaled to a random size and padded at random (Xie et al. 2018, arXiv 1711.01991)."""

    def forward(self, images: Tensor) -> Tensor:
        size = images.shape[-1]
        smaller = int(torch.randint(size - 6, size + 1, ()))
        left, top = (int(torch.randint(0, size - smaller + 1, ())) for _ in range(2))
        resized = F.interpolate(images, smaller, mode="bilinear")
        return F.pad(resized, (left, size - smaller - left, top, size - smaller - top))


class FlatReLU(nn.Module):
    """A ReLU with derivative 0 everywhere."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.detach().clamp_min(0) + 0 * inputs


class Quantise(nn.Module):
    """Images are rounded to 32 levels: a step function, so autograd's derivative is 0."""

    def forward(self, images: Tensor) -> Tensor:
        return (31 * images).round() / 31


def saturated() -> nn.Module:
    """Logits times 10,000."""
    return nn.Sequential(resnet20(), Times10000()).eval()


def randomly_resized() -> nn.Module:
    """Images resized and padded at random."""
    return nn.Sequential(RandomResize(), resnet20()).eval()


def flat_relu() -> nn.Module:
    """Images through a ReLU without a derivative."""
    return nn.Sequential(FlatReLU(), resnet20()).eval()


def quantised() -> nn.Module:
    """Images in 32 levels."""
    return nn.Sequential(Quantise(), resnet20()).eval()


def left_in_train_mode() -> nn.Module:
    """Nobody called ``.eval()``."""
    return resnet20().train()
