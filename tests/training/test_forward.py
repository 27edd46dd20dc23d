"""What is compiled for one size of batch may be recorded as a CUDA graph, what is for any may not."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn

from sstune.schema import Compile
from sstune.training.forward import compiled


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("any_batch", [True, False])
@pytest.mark.parametrize("mode", list(Compile))
def test_cuda_graphs_are_for_one_size(mode: Compile, any_batch: bool) -> None:
    network = compiled(nn.Linear(2, 2), mode, torch.device("cpu"), any_batch)
    settings = network.dynamo_ctx.compiler_config  # type: ignore[attr-defined]
    assert settings["triton.cudagraphs"] == (mode is not Compile.default and not any_batch)
    assert settings["max_autotune"] == (mode is Compile.max_autotune)
