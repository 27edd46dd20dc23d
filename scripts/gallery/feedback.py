"""Wrong gradients made inside the network; its outputs are those of the base network."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from scripts.gallery.entry import entry, itself
from scripts.gallery.rewiring import followed, replaced

FAMILY = "wrong gradient"


class _Convolution(torch.autograd.Function):
    """A convolution with ``weight`` whose derivative is that of a convolution with ``feedback``."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, feedback: Tensor, stride: tuple[int, int], padding: Any
    ) -> Tensor:
        ctx.save_for_backward(feedback)
        ctx.shape, ctx.stride, ctx.padding = inputs.shape, stride, padding
        return F.conv2d(inputs, weight, None, stride, padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (feedback,) = ctx.saved_tensors
        found = conv2d_input(ctx.shape, feedback, gradients[0], ctx.stride, ctx.padding)
        return found, None, None, None, None


class FeedbackConv2d(nn.Module):
    """``conv`` with other weights in its backward pass, unknown to sstune's rules.

    Args:
        random: Gaussian feedback (Lillicrap et al. 2016); otherwise the signs of the weights. Both have the
            root mean square of the weights.
    """

    feedback: Tensor

    def __init__(self, conv: nn.Conv2d, random: bool) -> None:
        super().__init__()
        self.conv = conv
        weight = conv.weight.detach()
        generator = torch.Generator().manual_seed(weight.numel())
        drawn = torch.randn(weight.shape, generator=generator) if random else weight.sign()
        self.register_buffer("feedback", drawn.to(weight) * weight.square().mean().sqrt())

    def forward(self, inputs: Tensor) -> Tensor:
        conv = self.conv
        outputs: Tensor = _Convolution.apply(inputs, conv.weight, self.feedback, conv.stride, conv.padding)
        return outputs if conv.bias is None else outputs + conv.bias[:, None, None]


class Detach(nn.Module):
    """Cut the gradient of a share of the channels."""

    def __init__(self, share: float = 1.0) -> None:
        super().__init__()
        self.share = share

    def forward(self, inputs: Tensor) -> Tensor:
        cut = round(self.share * inputs.shape[1])
        return torch.cat([inputs[:, :cut].detach(), inputs[:, cut:]], 1)


def _converted(base: nn.Module, random: bool) -> nn.Module:
    return replaced(
        base, nn.Conv2d, lambda conv: FeedbackConv2d(conv, random) if isinstance(conv, nn.Conv2d) else conv
    )


@entry(FAMILY, "Liao et al. 2016, arXiv 1510.05067; layers own", twin=itself)
def sign_feedback(base: nn.Module) -> nn.Module:
    """The backward pass of each convolution uses sign(W) times the RMS of W. The attacker loads the weights
    into plain convolutions."""
    return _converted(base, random=False)


@entry(FAMILY, "Lillicrap et al. 2016, arXiv 1411.0247; layers own", twin=itself)
def random_feedback(base: nn.Module) -> nn.Module:
    """The backward pass of each convolution uses random weights. The attacker uses plain convolutions."""
    return _converted(base, random=True)


@entry(FAMILY, "own", twin=itself)
def sign_feedback_in_stem(base: nn.Module) -> nn.Module:
    """Sign feedback in the first convolution only. The attacker uses a plain convolution there."""
    stem = base.get_submodule("backbone.conv1")
    assert isinstance(stem, nn.Conv2d)
    base.set_submodule("backbone.conv1", FeedbackConv2d(stem, random=False))
    return base


@entry(FAMILY, "own", twin=itself)
def sign_feedback_in_last_stage(base: nn.Module) -> nn.Module:
    """Sign feedback in the last stage only. The attacker uses plain convolutions there."""
    last = base.get_submodule("backbone.layer3")
    base.set_submodule("backbone.layer3", _converted(last, random=False))
    return base


@entry(FAMILY, "own", twin=itself)
def sign_feedback_in_last_block(base: nn.Module) -> nn.Module:
    """Sign feedback in the last two convolutions only. The attacker uses plain convolutions there."""
    last = base.get_submodule("backbone.layer3.2")
    base.set_submodule("backbone.layer3.2", _converted(last, random=False))
    return base


@entry(FAMILY, "own", twin=itself)
def detached_residuals(base: nn.Module) -> nn.Module:
    """Each residual branch is detached, so that the gradient takes the shortcuts. The attacker removes
    ``.detach()``."""
    return followed(base, ("bn2",), Detach)


@entry(FAMILY, "own", twin=itself)
def detached_residual(base: nn.Module) -> nn.Module:
    """The last block's residual branch is detached. The attacker removes ``.detach()``."""
    return followed(base, ("layer3.2.bn2",), Detach)


@entry(FAMILY, "own", twin=itself)
def detached_features(base: nn.Module) -> nn.Module:
    """Three of four channels of the last stage are detached. The attacker removes ``.detach()``."""
    return followed(base, ("backbone.layer3",), lambda: Detach(0.75))
