"""Numbers that are neither NaN nor infinite: what a figure may be made of."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor, nn


def first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Names the first tensor that holds a NaN or an infinity, and says how many it holds; None: none does."""
    for name, tensor in tensors:
        if tensor.is_floating_point() and (n := int((~torch.isfinite(tensor)).sum())):
            return f"{name}: {n} of {tensor.numel()} values are NaN or infinite"
    return None


def check_outputs_finite(finite: Tensor, network: nn.Module) -> None:
    """See that a network's outputs were numbers; an argmax over NaN would be a class like any other.

    Args:
        finite: (N,) bool, whether all outputs for an image were finite.

    Raises:
        FloatingPointError: they were not; names the network's first tensor that is not finite either.
    """
    n = int((~finite).sum())
    if n == 0:
        return
    tensors = chain(network.named_parameters(), network.named_buffers())
    found = first_not_finite(tensors) or "its weights are finite"
    raise FloatingPointError(
        f"the network's outputs are NaN or infinite for {n} of {len(finite)} images ({found})"
    )
