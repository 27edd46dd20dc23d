"""A network's mean over noise, whose gradient sees past steps and kinks that are smaller than the noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sstune.seeding import seed_from

COPIES = 4


class Smoothed(nn.Module):
    """The mean output of ``network`` over normal noise on its images (Cohen et al. 2019, arXiv 1902.02918; as
    an attack on steps, Athalye et al. 2018, arXiv 1802.00420).

    The noise is fixed, the same for each image, so that outputs are those of a deterministic network.

    Args:
        network: images -> outputs.
        sigma: standard deviation of the noise, in units of the images.
    """

    def __init__(self, network: nn.Module, sigma: float) -> None:
        super().__init__()
        self.network = network
        self.sigma = sigma

    def forward(self, images: Tensor) -> Tensor:
        """The mean over :data:`COPIES` noisy copies of each image, (N, C, H, W), in antithetic pairs."""
        outputs = []
        for number in range(COPIES // 2):
            generator = torch.Generator().manual_seed(seed_from("smoothed", number))
            noise = torch.randn(images.shape[1:], generator=generator).to(images)
            outputs += [self.network(images + sign * self.sigma * noise) for sign in (1, -1)]
        return torch.stack(outputs).mean(0)
