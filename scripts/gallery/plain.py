"""Networks that hide nothing: the adaptive attack is a longer one through their own gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from scripts.gallery.entry import entry
from scripts.gallery.filters import Blur
from scripts.gallery.outputs import Times

FAMILY = "plain"


class Ensemble(nn.Module):
    """The mean of the networks' logits."""

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([network(images) for network in self.networks]).mean(0)


class Double(nn.Module):
    """A network that computes in float64."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.double()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images.double())
        return logits.to(images.dtype)


class Constant(nn.Module):
    """Of logits: always class 0."""

    def forward(self, logits: Tensor) -> Tensor:
        return F.one_hot(torch.zeros_like(logits[:, 0]).long(), logits.shape[1]).to(logits)


class TwoConstant(nn.Module):
    """Of logits: those of the first two classes are 0."""

    def forward(self, logits: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(logits[:, :2]), logits[:, 2:]], 1)


class Pool(nn.Module):
    """The mean of each image and its average over 3x3 pixels."""

    def forward(self, images: Tensor) -> Tensor:
        return (images + F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)) / 2


@entry(FAMILY, "He et al. 2016, arXiv 1512.03385")
def unchanged(base: nn.Module) -> nn.Module:
    """The base network."""
    return base


@entry(FAMILY, "own", base="LINEAR")
def linear(base: nn.Module) -> nn.Module:
    """A linear classifier, the run of ``$LINEAR``."""
    return base


@entry(FAMILY, "own", base="MLP")
def mlp(base: nn.Module) -> nn.Module:
    """A fully connected network, the run of ``$MLP``."""
    return base


@entry(FAMILY, "Madry et al. 2018, arXiv 1706.06083", base="ADVERSARIAL")
def adversarial(base: nn.Module) -> nn.Module:
    """An adversarially trained network, the run of ``$ADVERSARIAL``."""
    return base


@entry(FAMILY, "own")
def ensemble(base: nn.Module) -> nn.Module:
    """The base network on the image and on a blurred one."""
    return Ensemble(base, nn.Sequential(Blur(0.5), base))


@entry(FAMILY, "own")
def folded(base: nn.Module) -> nn.Module:
    """Batch normalisation is folded into the convolutions."""
    for parent in [*base.modules()]:
        for number in ("1", "2"):
            conv, norm = getattr(parent, f"conv{number}", None), getattr(parent, f"bn{number}", None)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, f"conv{number}", fuse_conv_bn_eval(conv.eval(), norm.eval()))
                setattr(parent, f"bn{number}", nn.Identity())
    return base


@entry(FAMILY, "own")
def cooled(base: nn.Module) -> nn.Module:
    """Logits divided by 100."""
    return nn.Sequential(base, Times(0.01))


@entry(FAMILY, "own")
def double_inside(base: nn.Module) -> nn.Module:
    """The base network in float64."""
    return Double(base)


@entry(FAMILY, "own")
def constant(base: nn.Module) -> nn.Module:
    """One answer for all images: robust and useless."""
    return nn.Sequential(base, Constant())


@entry(FAMILY, "own")
def two_constant(base: nn.Module) -> nn.Module:
    """The logits of two classes are constants."""
    return nn.Sequential(base, TwoConstant())


@entry(FAMILY, "own")
def pooled(base: nn.Module) -> nn.Module:
    """Average pooling of the image first."""
    return nn.Sequential(Pool(), base)
