"""A layer's weight as matrices from inputs to outputs, one for each group."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Layout(NamedTuple):
    """Where the outputs are in a weight: first, or second within each group if ``transposed``."""

    groups: int
    transposed: bool

    @classmethod
    def of(cls, layer: nn.Module) -> Layout:
        """The layout of a Conv, ConvTranspose or Linear layer."""
        groups = getattr(layer, "groups", 1)
        assert isinstance(groups, int)
        return cls(groups, isinstance(layer, _TRANSPOSED))

    def matrices(self, weight: Tensor) -> Tensor:
        """(groups, outputs, inputs x kernel taps): how one output position sees the inputs of its group."""
        if not self.transposed:
            return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)
        inputs, outputs = weight.shape[:2]
        split = weight.reshape(self.groups, inputs // self.groups, outputs, -1)
        return split.transpose(1, 2).reshape(self.groups, outputs, -1)

    def weight(self, matrices: Tensor, like: Tensor) -> Tensor:
        """The inverse of :meth:`matrices`; ``like`` has the weight's shape."""
        if not self.transposed:
            return matrices.reshape(like.shape)
        inputs, outputs = like.shape[:2]
        split = matrices.reshape(self.groups, outputs, inputs // self.groups, -1)
        return split.transpose(1, 2).reshape(like.shape)

    def shape(self, weight: Tensor, outputs: int) -> torch.Size:
        """The shape of a weight with ``outputs`` outputs in each group instead."""
        if self.transposed:
            return torch.Size((weight.shape[0], outputs, *weight.shape[2:]))
        return torch.Size((self.groups * outputs, *weight.shape[1:]))
