"""Copies to the device that the host does not wait for."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device | str) -> Tensor:
    """``values`` on ``device``; in the order of the device's work, while the host goes on.

    A copy from ordinary memory makes the host wait; one from pinned memory does not, and torch gives that
    memory to nobody else before the copy is done.
    """
    if torch.device(device).type != "cuda" or values.is_cuda:
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
