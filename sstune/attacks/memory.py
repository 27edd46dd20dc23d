"""How many images a gradient is taken of at once."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from sstune.attacks.evaluation import CPU_BATCH, Victim, View, attacked_through
from sstune.datasets import batches


def largest_batch(victim: Victim, view: View) -> int:
    """As many images as memory holds, by doubling; on a CPU 128.

    It depends on the network and the gradient alone, so one answer serves all attacks on a victim.
    """
    if victim.device.type == "cpu":
        return CPU_BATCH
    size = 1
    ((images, _),) = batches(victim.some(1).split, 1, victim.device)
    with attacked_through(view.network, view.gradient):
        # twice the size: an attack keeps a few copies of the images besides
        while size < len(victim.split) and _fits(view, images.repeat(4 * size, 1, 1, 1)):
            size *= 2
    torch.cuda.empty_cache()
    return size


def _fits(view: View, images: Tensor) -> bool:
    """Whether memory holds a gradient with respect to ``images``, laid out as those attacked are."""
    leaf = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    try:
        torch.autograd.grad(view.subject()(leaf).sum(), leaf)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return False
    return True


def out_of_memory(error: RuntimeError) -> bool:
    """Whether memory was at an end: torch's own error, or what cuBLAS, cuDNN or the driver say of it."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return re.search(r"(CUBLAS|CUDNN|CUSOLVER)\w*ALLOC_FAILED|out of memory", str(error), re.I) is not None
