"""One optimiser step: forward, backward through each layer's feedback, update."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from sstune import rules
from sstune.schema import RunConfig
from sstune.tasks import Task
from sstune.training.distributed import World, gradients_later
from sstune.training.forward import Forward, autocast


class Step:
    """Trains ``network`` on one batch at a time, in the configured precision.

    Args:
        batch_size: images of a full batch in this process; only those are compiled for, so that a last,
            smaller batch does not compile the network anew.

    Raises:
        RequestError: as in :class:`Forward`.
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
        self.shared = world.shared(network, device)
        self.forward = Forward(self.shared, config.compile, -(-batch_size // config.accumulate), device)
        self.autocast = autocast(config.precision, device)

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
                    outputs = self.forward(some)
                    loss = self.task.loss(outputs, theirs)
                # gradients are averaged over the processes, and each image counts alike
                (loss * (len(some) * self.world.size / total)).backward()
            losses.append(loss.detach() * (len(some) / len(images)))
            right.append(self.task.correct(outputs.detach(), theirs).sum())
        if self.config.clip_norm is not None:
            self._clip(self.config.clip_norm)
        self.optimizer.step()
        return torch.stack(losses).sum(), torch.stack(right).sum()

    def _clip(self, largest: float) -> None:
        """Scale all gradients by what brings the norm of the network's own down to ``largest``.

        Trained feedback is scaled along, but has no say in the norm: its rule decides on the direction of
        its updates, not on the size of the network's.
        """
        feedback = {id(parameter) for parameter in rules.feedback_parameters(self.network)}
        own = [p.grad for p in self.network.parameters() if p.grad is not None and id(p) not in feedback]
        norm = nn.utils.get_total_norm(own)
        nn.utils.clip_grads_with_norm_(self.network.parameters(), largest, norm)
