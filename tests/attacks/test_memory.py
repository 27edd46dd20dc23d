"""The largest batch that memory holds, with a device whose memory is pretended to be at an end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from victims import victim_of

from sstune.attacks import GradientSource, Victim, largest_batch
from sstune.attacks.memory import out_of_memory
from sstune.datasets import Batch, Split
from sstune.schema import Gradient

ENDS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
]
OTHERS = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
]


class Narrow(nn.Module):
    """No more than ``room`` images at once; notes of how many it was asked, and how they lay in memory."""

    def __init__(self, room: int, error: RuntimeError) -> None:
        super().__init__()
        self.room = room
        self.error = error
        self.asked: list[int] = []
        self.laid_out: set[bool] = set()

    def forward(self, images: Tensor) -> Tensor:
        self.asked.append(len(images))
        self.laid_out.add(images.is_contiguous(memory_format=torch.channels_last))
        if len(images) > self.room:
            raise self.error
        return images.flatten(1)


class Elsewhere:
    """A device that is no CPU; what is sent there stays where it is."""

    type = "elsewhere"


@pytest.fixture
def victim(monkeypatch: pytest.MonkeyPatch) -> Victim:
    """Of 100 colour images."""
    split = Split(torch.zeros(100, 3, 4, 4, dtype=torch.uint8), torch.zeros(100, dtype=torch.long))

    def batches(split: Split, n: int, device: Elsewhere) -> list[Batch]:
        assert isinstance(split.images, Tensor)
        return [Batch(split.images / 255, split.targets, torch.arange(len(split)))]

    monkeypatch.setattr("sstune.attacks.memory.batches", batches)
    victim = victim_of(nn.Identity(), split, clean=torch.ones(100, dtype=torch.bool))
    elsewhere: Any = Elsewhere()
    return replace(victim, device=elsewhere)


@pytest.mark.parametrize("error", ENDS, ids=lambda error: str(error)[:40])
def test_whatever_says_that_memory_is_at_an_end(victim: Victim, error: RuntimeError) -> None:
    assert out_of_memory(error)
    network = Narrow(room=70, error=error)
    assert largest_batch(victim, GradientSource(Gradient.exact, network)) == 32
    assert network.asked == [4, 8, 16, 32, 64, 128]
    assert network.laid_out == {True}


@pytest.mark.parametrize("error", OTHERS, ids=lambda error: str(error)[:40])
def test_other_errors_are_not_taken_for_it(victim: Victim, error: RuntimeError) -> None:
    with pytest.raises(RuntimeError, match=str(error)):
        largest_batch(victim, GradientSource(Gradient.exact, Narrow(room=1, error=error)))


def test_it_is_found_out_once_for_a_network_and_a_gradient(victim: Victim) -> None:
    network = Narrow(room=70, error=ENDS[0])
    source = GradientSource(Gradient.exact, network)
    for n in (100, 40, 100):
        assert largest_batch(victim.some(n), source) == 32
    assert len(network.asked) == 6
    assert largest_batch(victim, GradientSource(Gradient.rule, network)) == 32
    assert len(network.asked) == 12


def test_no_more_is_tried_than_there_are_images(victim: Victim) -> None:
    network = Narrow(room=1000, error=ENDS[0])
    source = GradientSource(Gradient.exact, network)
    assert largest_batch(victim.some(3), source) == 4
    assert network.asked == [4, 8]
    assert largest_batch(victim, source) == 128
    assert network.asked == [4, 8, 16, 32, 64, 128, 256]
