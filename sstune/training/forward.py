"""The forward pass of training, in the configured precision, compiled if configured."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sstune.schema import Compile, Precision, RequestError

# What is left of the modes that record CUDA graphs.
_WITHOUT_GRAPHS = {Compile.reduce_overhead: "default", Compile.max_autotune: "max-autotune-no-cudagraphs"}


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Inside, products are computed in bf16 if that is the training's precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision is Precision.bf16)


def compiled(
    network: nn.Module, mode: Compile, device: torch.device, any_batch: bool = False
) -> Callable[[Tensor], Tensor]:
    """``network`` by torch.compile; with ``any_batch`` one compilation serves batches of every size, without
    CUDA graphs, which are for one size each.

    Raises:
        RequestError: compiling for the CPU needs a C++ compiler, and there is none.
    """
    if device.type == "cpu":
        _look_for_compiler()
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # "no CUDA" on a CPU
    how = _WITHOUT_GRAPHS.get(mode, mode.value) if any_batch else mode.value
    return torch.compile(network, mode=how, dynamic=True if any_batch else None)


class Forward:
    """``network``, compiled for batches of ``size`` images; other sizes run eagerly.

    Raises:
        RequestError: as :func:`compiled`.
    """

    def __init__(self, network: nn.Module, mode: Compile | None, size: int, device: torch.device) -> None:
        self.network = network
        self.size = size
        self.compiled: Callable[[Tensor], Tensor] = network
        if mode is not None:
            self.compiled = compiled(network, mode, device)

    def __call__(self, images: Tensor) -> Tensor:
        if self.compiled is self.network or len(images) != self.size:
            outputs: Tensor = self.network(images)
            return outputs
        torch.compiler.cudagraph_mark_step_begin()  # imports the compiler, which takes a second
        return self.compiled(images)


def _look_for_compiler() -> None:
    """What torch.compile calls for the CPU must be there: the one that ``$CXX`` names, or the usual one.

    Raises:
        RequestError: it is not.
    """
    usual = "clang++" if sys.platform == "darwin" else "g++"
    name = shlex.split(os.environ.get("CXX") or usual)[0]
    if shutil.which(name) is None:
        raise RequestError(f"compile: needs a C++ compiler for the CPU; there is no {name} ($CXX)")
