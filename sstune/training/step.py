"""One optimiser step: forward, backward through each layer's feedback, update."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from sstune import rules
from sstune.schema import Precision, RequestError, RunConfig
from sstune.tasks import Task
from sstune.training.distributed import World, gradients_later


@contextmanager
def reduced_precision(precision: Precision) -> Iterator[None]:
    """Inside, float32 products on CUDA may be computed in TF32 if that is the training's precision."""
    if precision is not Precision.tf32:
        yield
        return
    backends: Any = torch.backends
    before = backends.fp32_precision
    try:
        backends.fp32_precision = "tf32"
        yield
    finally:
        backends.fp32_precision = before


class Step:
    """Trains ``network`` on one batch at a time, in the configured precision.

    Args:
        batch_size: images of a full batch in this process; only those are compiled for, so that a last,
            smaller batch does not compile the network anew.

    Raises:
        RequestError: ``compile`` is asked for on a CPU, and there is no C++ compiler.
    """

    def __init__(
        self,
        config: RunConfig,
        network: nn.Module,
        task: Task,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        world: World,
        batch_size: int,
    ) -> None:
        self.config = config
        self.network = network
        self.task = task
        self.optimizer = optimizer
        self.world = world
        self.part = -(-batch_size // config.accumulate)
        self.shared = world.shared(network, device)
        self.compiled: Callable[[Tensor], Tensor] = self.shared
        if config.compile is not None:
            if device.type == "cpu":
                _look_for_compiler()
            logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # "no CUDA" on a CPU
            self.compiled = torch.compile(self.shared, mode=config.compile.value)
        bf16 = config.precision is Precision.bf16
        self.autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)

    def __call__(self, images: Tensor, labels: Tensor, total: int) -> tuple[Tensor, Tensor]:
        """Mean loss of this process's images before the step, and how many of them were right; on the device.

        Args:
            total: images of the batch in all processes, over which gradients are averaged.
        """
        rules.begin_step(self.network)
        self.optimizer.zero_grad()
        # as many in every process, and of two images at least, whatever this one's share of the batch
        n_parts = max(1, min(self.config.accumulate, total // self.world.size // 2))
        parts = list(zip(images.tensor_split(n_parts), labels.tensor_split(n_parts), strict=True))
        losses, right = [], []
        for number, (some, theirs) in enumerate(parts, start=1):
            with nullcontext() if number == len(parts) else gradients_later(self.shared):
                with self.autocast:
                    outputs = self._forward(some)
                    loss = self.task.loss(outputs, theirs)
                # gradients are averaged over the processes, and each image counts alike
                (loss * (len(some) * self.world.size / total)).backward()
            losses.append(loss.detach() * (len(some) / len(images)))
            right.append(self.task.correct(outputs.detach(), theirs).sum())
        if self.config.clip_norm is not None:
            self._clip(self.config.clip_norm)
        self.optimizer.step()
        return torch.stack(losses).sum(), torch.stack(right).sum()

    def _forward(self, images: Tensor) -> Tensor:
        if len(images) != self.part:
            return self.shared(images)
        torch.compiler.cudagraph_mark_step_begin()
        return self.compiled(images)

    def _clip(self, largest: float) -> None:
        """Scale all gradients by what brings the norm of the network's own down to ``largest``.

        Trained feedback is scaled along, but has no say in the norm: its rule decides on the direction of
        its updates, not on the size of the network's.
        """
        feedback = {id(parameter) for parameter in rules.feedback_parameters(self.network)}
        own = [p.grad for p in self.network.parameters() if p.grad is not None and id(p) not in feedback]
        norm = nn.utils.get_total_norm(own)
        nn.utils.clip_grads_with_norm_(self.network.parameters(), largest, norm)


def _look_for_compiler() -> None:
    """What torch.compile calls for the CPU must be there: the one that ``$CXX`` names, or the usual one.

    Raises:
        RequestError: it is not.
    """
    usual = "clang++" if sys.platform == "darwin" else "g++"
    name = shlex.split(os.environ.get("CXX") or usual)[0]
    if shutil.which(name) is None:
        raise RequestError(f"compile: needs a C++ compiler for the CPU; there is no {name} ($CXX)")
