"""Asynchronous copies to the device."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device | str) -> Tensor:
    """``values`` on ``device``; to CUDA, copied asynchronously from pinned memory.

    torch's allocator does not reuse the pinned memory before the copy is done.
    """
    if torch.device(device).type != "cuda" or values.is_cuda:
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
