"""Data-parallel training with torchrun: each process computes its share of every batch.

Together the processes compute what one process would compute with the whole batch: gradients are averaged,
batch normalisation uses the statistics of the whole batch, and all draw the same feedback. Only the first
process writes files.
"""

from __future__ import annotations

import atexit
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from sstune.datasets import Split
from sstune.tasks import Evaluation, Task, evaluate, predict

# One process may wait for another run, or read data, while the others wait for it; torchrun sees who dies.
TIMEOUT = timedelta(days=1)


@dataclass(frozen=True)
class World:
    """The number of processes and the rank of this one; a single process without torchrun."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def all_reduce_max(self, value: int) -> int:
        """The maximum over all processes, so that all take the same decision."""
        if self.size == 1:
            return value
        shared = torch.tensor(value)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return int(shared)

    def broadcast(self, value: Any) -> Any:
        """The value of the first process, in all processes."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Context that the first process runs before the others."""
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()

    def shared(self, network: nn.Module, device: torch.device) -> nn.Module:
        """``network``, wrapped so that gradients are averaged over the processes."""
        if self.size == 1:
            return network
        devices = [device] if device.type == "cuda" else None
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # its new name is not in the oldest torch we support
            return DistributedDataParallel(network, device_ids=devices, broadcast_buffers=False)


ALONE = World()


@cache
def init_distributed() -> World:
    """Join the process group that torchrun's environment variables describe; it is left at exit."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in os.environ:
        return ALONE
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    # torchrun's store outlives a restart, with the addresses of processes that have died
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"attempt {attempt}", store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, timeout=TIMEOUT, store=store, rank=rank, world_size=size)
    atexit.register(dist.destroy_process_group)
    return World(rank, size, int(os.environ.get("LOCAL_RANK", "0")))


def evaluate_distributed(
    network: nn.Module, task: Task, split: Split, device: torch.device, world: World, reference: Any = None
) -> Evaluation:
    """:func:`sstune.tasks.evaluate` with the split shared out among the processes; all get the result."""
    if world.size == 1 or len(split) < world.size:
        return evaluate(network, task, split, device, reference)
    mine = torch.arange(world.rank, len(split), world.size)
    own, loss = predict(network, task, split.take(mine), device)
    assert loss is not None
    predictions = own.new_zeros(len(split), *own.shape[1:])
    predictions[mine] = own
    predictions = world.sum(predictions)
    total = world.sum(torch.tensor(loss * len(mine), dtype=torch.float64))
    score = task.score(predictions, split.targets.cpu(), reference)
    return Evaluation(predictions, score, float(total) / len(split))


@contextmanager
def no_sync(network: nn.Module) -> Iterator[None]:
    """Context in which backward passes accumulate gradients locally; the next one outside averages them."""
    if isinstance(network, DistributedDataParallel):
        with network.no_sync():
            yield
    else:
        yield


class Total(torch.autograd.Function):
    """The sum over all processes; each of them has the loss, so gradients are summed likewise."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class SyncedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over all processes' images, on the CPU, where nn.SyncBatchNorm does not work."""

    def _check_input_dim(self, images: Tensor) -> None:
        """Any number of axes after batch and channels."""

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return super().forward(images)
        axes = [0, *range(2, images.dim())]
        shape = [1, -1] + [1] * (images.dim() - 2)
        x = images.float() if images.dtype in (torch.bfloat16, torch.float16) else images
        n = Total.apply(x.new_tensor(x.numel() // x.shape[1]))
        mean = Total.apply(x.sum(axes)) / n
        centred = x - mean.reshape(shape)
        var = Total.apply((centred * centred).sum(axes)) / n
        self._follow(mean.detach(), var.detach() * n / (n - 1))
        normal = centred * (var + self.eps).rsqrt().reshape(shape)
        if self.affine:
            normal = normal * self.weight.reshape(shape) + self.bias.reshape(shape)
        return normal.to(images.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, unbiased: Tensor) -> None:
        if not self.track_running_stats:
            return
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(unbiased, share)


def synchronise_normalisation(network: nn.Module, device: torch.device) -> list[str]:
    """Let batch normalisation see the whole batch, in place; notes on layers that cannot."""
    if device.type == "cuda":
        from timm.layers.norm_act import convert_sync_batchnorm  # knows timm's own layers, too

        convert_sync_batchnorm(network)
        return []
    notes = []
    for name, module in network.named_modules():
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            module.__class__ = SyncedBatchNorm
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            notes.append(f"{name}: each process normalises by its own share of the batch")
    return notes
