"""One optimiser step: forward, backward through each layer's feedback, update."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from sstune import rules
from sstune.datasets import Batch
from sstune.schema import RequestError
from sstune.training.distributed import no_sync
from sstune.training.forward import Forward, autocast
from sstune.training.learner import Learner


class Step:
    """Trains ``network`` on one batch at a time, in the configured precision.

    Args:
        batch_size: images of a full batch in this process; only those are compiled for, so that a last,
            smaller batch does not recompile the network.

    Raises:
        RequestError: as in :class:`Forward`, or the loss is not a mean over samples and the batch is divided.
    """

    def __init__(self, learner: Learner, batch_size: int) -> None:
        self.config = config = learner.config
        self.network = learner.network
        self.task = learner.task
        self.optimizer = learner.optimizer
        self.world = learner.world
        if not self.task.loss_of_samples and (config.accumulate > 1 or self.world.size > 1):
            key = "accumulate" if config.accumulate > 1 else "torchrun"
            raise RequestError(
                f"{key}: the loss of this {config.task.name} task compares the images of a batch, which "
                f"cannot be divided"
            )
        self.shared = learner.world.shared(learner.network, learner.device)
        size = -(-batch_size // config.accumulate)
        self.forward = Forward(self.shared, config.compile, size, learner.device)
        self.autocast = autocast(config.precision, learner.device)

    def __call__(self, batch: Batch, total: int) -> tuple[Tensor, Tensor]:
        """Mean loss of this process's images before the step, and the sum of their scores (NaN where a sample
        has none); both on the device.

        Args:
            total: images of the batch in all processes, over which gradients are averaged.
        """
        rules.begin_step(self.network)
        self.optimizer.zero_grad()
        # as many in every process, and of two images at least, whatever this one's share of the batch
        n_parts = max(1, min(self.config.accumulate, total // self.world.size // 2))
        losses, scores = [], []
        for number, part in enumerate(batch.parts(n_parts), start=1):
            with nullcontext() if number == n_parts else no_sync(self.shared):
                with self.autocast:
                    outputs = self.forward(part.images)
                    loss = self.task.training_loss(outputs, part)
                # gradients are averaged over the processes, and each image counts alike
                (loss * (len(part) * self.world.size / total)).backward()
            losses.append(loss.detach() * (len(part) / len(batch)))
            scores.append(self._scores(outputs.detach(), part))
        if self.config.clip_norm is not None:
            self._clip(self.config.clip_norm)
        self.optimizer.step()
        return torch.stack(losses).sum(), torch.stack(scores).sum()

    def _scores(self, outputs: Tensor, batch: Batch) -> Tensor:
        found = self.task.batch_scores(outputs, batch)
        return outputs.new_full((), torch.nan) if found is None else found.sum()

    def _clip(self, largest: float) -> None:
        """Scale all gradients by what brings the norm of the network's own down to ``largest``.

        Trained feedback is scaled along, but has no say in the norm: its rule decides on the direction of
        its updates, not on the size of the network's.
        """
        feedback = {id(parameter) for parameter in rules.feedback_parameters(self.network)}
        own = [p.grad for p in self.network.parameters() if p.grad is not None and id(p) not in feedback]
        norm = nn.utils.get_total_norm(own)
        nn.utils.clip_grads_with_norm_(self.network.parameters(), largest, norm)
