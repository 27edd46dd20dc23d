"""The largest batch whose gradient fits into memory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sstune.attacks.evaluation import CPU_BATCH, GradientSource, Victim, gradient_mode
from sstune.datasets import batches
from sstune.schema import Gradient


@dataclass
class Found:
    """The largest batch size that is known to fit; ``most``: twice as many do not."""

    size: int = 1
    most: bool = False


# What was found out in this process, for a network and its gradients.
_FOUND: WeakKeyDictionary[nn.Module, dict[Gradient, Found]] = WeakKeyDictionary()


def largest_batch(victim: Victim, source: GradientSource) -> int:
    """The largest batch size that fits, found by doubling, at most twice the victim's samples; 128 on a CPU.

    It depends on the network and the gradient alone, and is found out once for all attacks through it.
    """
    if victim.device.type == "cpu":
        return CPU_BATCH
    found = _FOUND.setdefault(source.network, {}).setdefault(source.gradient, Found())
    if not found.most and found.size < len(victim.split):
        (first,) = batches(victim.split.take(torch.tensor([0])), 1, victim.device)
        with gradient_mode(source.network, source.gradient):
            while not found.most and found.size < len(victim.split):
                # twice the size: an attack keeps a few copies of the images besides
                found.most = not _fits(source, first.images.repeat(4 * found.size, 1, 1, 1))
                found.size *= 1 if found.most else 2
        torch.cuda.empty_cache()
    return found.size


def _fits(source: GradientSource, images: Tensor) -> bool:
    """Whether memory holds a gradient with respect to ``images``, laid out as those attacked are."""
    leaf = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    try:
        torch.autograd.grad(source.model()(leaf).sum(), leaf)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return False
    return True


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means out of memory, reported by torch, cuBLAS, cuDNN or the driver."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    said = r"CU(BLAS|DNN|SOLVER)_\w*ALLOC(ATION)?_FAILED|out of memory"
    return re.search(said, str(error), re.IGNORECASE) is not None
