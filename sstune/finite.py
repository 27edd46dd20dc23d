"""Checks for NaN and infinite values."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor, nn


def first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Name of the first tensor with NaN or infinite values, and their number; None if all are finite."""
    for name, tensor in tensors:
        if tensor.is_floating_point() and (n := int((~torch.isfinite(tensor)).sum())):
            return f"{name}: {n} of {tensor.numel()} values are NaN or infinite"
    return None


def check_outputs_finite(finite: Tensor, network: nn.Module) -> None:
    """Check that a network's outputs are finite, since an argmax over NaN is an ordinary class index.

    Args:
        finite: (N,) bool, whether all outputs for an image are finite.

    Raises:
        FloatingPointError: they are not; names the first parameter or buffer that is not finite.
    """
    n = int((~finite).sum())
    if n == 0:
        return
    tensors = chain(network.named_parameters(), network.named_buffers())
    found = first_not_finite(tensors) or "its weights are finite"
    raise FloatingPointError(
        f"the network's outputs are NaN or infinite for {n} of {len(finite)} images ({found})"
    )
