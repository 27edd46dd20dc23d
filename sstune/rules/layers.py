"""Layers whose backward pass uses feedback: torch's layers with another path for the input gradient."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sstune.rules import functional
from sstune.rules.feedback import Feedback, Pathway
from sstune.rules.functional import Geometry


class FeedbackLayer(nn.Module):
    """Base class of converted layers: their feedback, and a switch back to the exact derivative."""

    feedback: Feedback
    weight: Tensor
    exact: bool = False

    @property
    def uses_own_forward(self) -> bool:
        """Whether torch's forward is used: with exact derivatives, or under a direct rule, which has no V."""
        return self.exact or self.feedback.is_direct

    def cut(self, input: Tensor) -> Tensor:
        """The input of torch's forward: as the rule passes it, or unchanged with exact derivatives."""
        return input if self.exact else self.feedback.cut(input, self.weight)

    def pathway(self, weight: Tensor) -> Pathway:
        """The pathway of V for this forward pass."""
        return self.feedback.current_pathway(weight) if self.feedback.is_frozen else self.feedback(weight)


class FeedbackLinear(FeedbackLayer, nn.Linear):
    """nn.Linear with ``dx = delta V``."""

    def forward(self, input: Tensor) -> Tensor:
        if self.uses_own_forward:
            return super().forward(self.cut(input))
        return functional.linear(input, self.weight, self.bias, self.pathway(self.weight))


class _FeedbackConv(FeedbackLayer):
    """Mixed into nn.Conv1d/2d/3d, whose forward calls ``_conv_forward``."""

    def _conv_forward(self: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.uses_own_forward:
            return super()._conv_forward(self.cut(input), weight, bias)  # type: ignore[misc]
        padding = self.padding
        if self.padding_mode != "zeros" or padding == "same":
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=mode)
            padding = (0,) * len(self.kernel_size)
        elif padding == "valid":
            padding = (0,) * len(self.kernel_size)
        geometry = Geometry(self.stride, padding, self.dilation, False, self.output_padding, self.groups)
        return functional.convolution(input, weight, bias, self.pathway(weight), geometry)


class FeedbackConv1d(_FeedbackConv, nn.Conv1d):
    """nn.Conv1d with its input gradient through V."""


class FeedbackConv2d(_FeedbackConv, nn.Conv2d):
    """nn.Conv2d with its input gradient through V."""


class FeedbackConv3d(_FeedbackConv, nn.Conv3d):
    """nn.Conv3d with its input gradient through V."""


class _FeedbackConvTranspose(FeedbackLayer):
    """Mixed into nn.ConvTranspose1d/2d/3d."""

    def forward(self: Any, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if self.uses_own_forward:
            return super().forward(self.cut(input), output_size)
        spatial = len(self.kernel_size)
        output_padding = self._output_padding(
            input, output_size, self.stride, self.padding, self.kernel_size, spatial, self.dilation
        )
        geometry = Geometry(self.stride, self.padding, self.dilation, True, output_padding, self.groups)
        return functional.convolution(input, self.weight, self.bias, self.pathway(self.weight), geometry)


class FeedbackConvTranspose1d(_FeedbackConvTranspose, nn.ConvTranspose1d):
    """nn.ConvTranspose1d with its input gradient through V."""


class FeedbackConvTranspose2d(_FeedbackConvTranspose, nn.ConvTranspose2d):
    """nn.ConvTranspose2d with its input gradient through V."""


class FeedbackConvTranspose3d(_FeedbackConvTranspose, nn.ConvTranspose3d):
    """nn.ConvTranspose3d with its input gradient through V."""


# The converted class of each plain one. Exact types only: a subclass may compute something else.
CONVERTED: dict[type[nn.Module], type[FeedbackLayer]] = {
    nn.Linear: FeedbackLinear,
    nn.Conv1d: FeedbackConv1d,
    nn.Conv2d: FeedbackConv2d,
    nn.Conv3d: FeedbackConv3d,
    nn.ConvTranspose1d: FeedbackConvTranspose1d,
    nn.ConvTranspose2d: FeedbackConvTranspose2d,
    nn.ConvTranspose3d: FeedbackConvTranspose3d,
}

# Subclasses, by full name, that compute what their parent does.
_ALIKE: dict[str, type[FeedbackLayer]] = {"timm.layers.linear.Linear": FeedbackLinear}


def converted_class(layer: nn.Module) -> type[FeedbackLayer] | None:
    """The converted class of ``layer``, or None if its own class may compute something else."""
    kind = type(layer)
    return CONVERTED.get(kind) or _ALIKE.get(f"{kind.__module__}.{kind.__qualname__}")
