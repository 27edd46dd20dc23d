"""Outputs that jump from image to image, although they are not random."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scripts.gallery.content import keys, uniform
from scripts.gallery.entry import entry, itself
from scripts.gallery.rewiring import STAGES, followed

FAMILY = "jumps"


class KWinners(nn.Module):
    """Each sample keeps the largest ``share`` of its activations."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, inputs: Tensor) -> Tensor:
        flat = inputs.detach().flatten(1)
        least = flat.topk(max(1, round(self.share * flat.shape[1])), 1).values[:, -1]
        return inputs * (inputs >= least[:, None, None, None])


class ContentNoise(nn.Module):
    """Noise uniform within ``amount`` is added to an image, drawn by its content."""

    def __init__(self, amount: float) -> None:
        super().__init__()
        self.amount = amount

    def forward(self, images: Tensor) -> Tensor:
        return images + self.amount * (2 * uniform(keys(images), images.shape[1:], images) - 1)


class PositionNoise(nn.Module):
    """Noise uniform within ``amount``, the same for each batch of a size; samples have their own."""

    def __init__(self, amount: float) -> None:
        super().__init__()
        self.amount = amount

    def forward(self, images: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return images + self.amount * (2 * torch.rand(images.shape, generator=generator).to(images) - 1)


class Prune(nn.Module):
    """A ``share`` of the activations is zero, drawn by ``keys``, (N,), which :class:`Pruned` sets."""

    keys: Tensor | None = None

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, inputs: Tensor) -> Tensor:
        assert self.keys is not None
        kept = uniform(self.keys, inputs.shape[1:], inputs) >= self.share
        return inputs * kept / (1 - self.share)


class Pruned(nn.Module):
    """A network with :class:`Prune` in it; the keys are hashes of the images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        layers = [module for module in self.network.modules() if isinstance(module, Prune)]
        for number, layer in enumerate(layers):
            layer.keys = keys(images) + number
        outputs: Tensor = self.network(images)
        for layer in layers:
            layer.keys = None  # a later pass must not depend on this one
        return outputs


class ContentShift(nn.Module):
    """Images are shifted by -1, 0 or 1 pixel in each direction, by their content."""

    def forward(self, images: Tensor) -> Tensor:
        chosen = (9 * uniform(keys(images), (1,), images)[:, 0]).long()
        return torch.stack(_moved(images), 1)[torch.arange(len(images)), chosen]


class MeanShift(nn.Module):
    """The mean of a network's logits over the nine shifts of :class:`ContentShift`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([self.network(moved) for moved in _moved(images)]).mean(0)


def _moved(images: Tensor) -> list[Tensor]:
    return [images.roll((down, right), (2, 3)) for down in (-1, 0, 1) for right in (-1, 0, 1)]


@entry(FAMILY, "Xiao et al. 2020, arXiv 1905.10510", twin=itself)
def k_winners(base: nn.Module) -> nn.Module:
    """k-winners-take-all of 20 % behind each stage. The attacker uses the gradient without it."""
    return followed(base, STAGES, lambda: KWinners(0.2))


@entry(FAMILY, "own", twin=itself)
def pruned_by_content(base: nn.Module) -> nn.Module:
    """A tenth of the activations behind each stage is zero, by a hash of the image. The attacker prunes
    nothing."""
    return Pruned(followed(base, STAGES, lambda: Prune(0.1)))


@entry(FAMILY, "own", twin=itself)
def noise_by_content(base: nn.Module) -> nn.Module:
    """Noise of up to 0.25, by a hash of the image. The attacker adds none."""
    return nn.Sequential(ContentNoise(0.25), base)


@entry(FAMILY, "own", twin=itself)
def noise_by_position(base: nn.Module) -> nn.Module:
    """Noise of up to 0.25 by the position in the batch: figures are not valid, since an image attacked in one
    place is judged in another. The attacker adds none."""
    return nn.Sequential(PositionNoise(0.25), base)


@entry(FAMILY, "own", twin=MeanShift)
def shifted_by_content(base: nn.Module) -> nn.Module:
    """The image is shifted by up to a pixel, by its hash. The attacker averages over all shifts."""
    return nn.Sequential(ContentShift(), base)
