"""The training loop: any network, task, rule and schedule; resumable at every step, bit-equal on the CPU."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sstune import rules
from sstune.datasets import SPLIT_SEED, Loader, Split, batches
from sstune.interrupt import StopFlag
from sstune.schema import Precision, RunConfig, Select
from sstune.tasks import Task, evaluate
from sstune.training.checkpoint import Progress
from sstune.training.optimization import build_schedule, weight_decay_factor

PROBE = 128  # images on which updates are compared with true gradients


class Trainer:
    """Trains ``network`` on ``loader``; after each epoch measures ``val`` and keeps the best epoch's state.

    Args:
        save: called with the progress after each epoch, and when a signal stops the run.
        stop: checked after every step.
    """

    def __init__(
        self,
        config: RunConfig,
        network: nn.Module,
        task: Task,
        loader: Loader,
        val: Split,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        save: Callable[[Progress], None],
        stop: StopFlag,
    ) -> None:
        self.config = config
        self.network = network
        self.task = task
        self.loader = loader
        self.val = val
        self.optimizer = optimizer
        self.device = device
        self.save = save
        self.stop = stop
        self.probe, _ = loader.split.sample(PROBE, SPLIT_SEED)  # stored images are sorted by class
        self.factor = build_schedule(config.schedule, config.epochs, len(loader))
        self.autocast = torch.autocast(
            device.type, dtype=torch.bfloat16, enabled=config.precision is Precision.bf16
        )

    def fit(self, progress: Progress) -> Progress:
        """Run the remaining epochs.

        Raises:
            Stopped: a signal came; the state is saved.
            FloatingPointError: the loss is no longer finite.
        """
        while progress.epoch < self.config.epochs:
            began = time.perf_counter() - progress.totals.get("seconds", 0.0)
            self._train_epoch(progress, began)
            progress.history.append(self._finish_epoch(progress, began))
            progress.seconds += progress.history[-1]["seconds"]
            progress.epoch, progress.step, progress.totals = progress.epoch + 1, 0, {}
            self.save(progress)
        return progress

    def _train_epoch(self, progress: Progress, began: float) -> None:
        self.network.train()
        totals = progress.totals
        loss_sum = torch.tensor(totals.get("loss", 0.0), dtype=torch.float64, device=self.device)
        correct = torch.tensor(int(totals.get("correct", 0)), device=self.device)
        seen = int(totals.get("seen", 0))
        bar = tqdm(
            desc=f"epoch {progress.epoch + 1}/{self.config.epochs}",
            total=len(self.loader),
            initial=progress.step,
            leave=False,
            disable=not sys.stderr.isatty(),
        )
        for images, labels in self.loader.epoch(progress.epoch, progress.step):
            loss, outputs = self._step(images, labels, progress.epoch * len(self.loader) + progress.step)
            loss_sum += loss.double() * len(labels)
            correct += self.task.correct(outputs, labels).sum()
            seen += len(labels)
            progress.step += 1
            bar.update()
            if self.stop and progress.step < len(self.loader):
                progress.totals = self._totals(loss_sum, correct, seen, began)
                self.save(progress)
                raise self.stop.stop()
        bar.close()
        progress.totals = self._totals(loss_sum, correct, seen, began)
        if not math.isfinite(progress.totals["loss"]):
            raise FloatingPointError(
                f"the training loss is {progress.totals['loss']} in epoch {progress.epoch + 1}: "
                f"lower optimizer.lr, set clip_norm, or use rule.scale=weight_rms"
            )

    @staticmethod
    def _totals(loss_sum: Tensor, correct: Tensor, seen: int, began: float) -> dict[str, float]:
        seconds = time.perf_counter() - began
        return {"loss": float(loss_sum), "correct": int(correct), "seen": seen, "seconds": seconds}

    def weight_decay(self, epoch: int) -> float:
        """Weight decay in a 0-based epoch."""
        return self.config.optimizer.weight_decay * weight_decay_factor(self.config.optimizer, epoch)

    def _step(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """One optimiser step: forward, backward through each layer's feedback, update."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.optimizer.lr * self.factor(step)
            group["weight_decay"] = self.weight_decay(step // len(self.loader))
        rules.begin_step(self.network)
        with self.autocast:
            outputs = self.network(images)
            loss = self.task.loss(outputs, labels)
        self.optimizer.zero_grad()
        loss.backward()
        if self.config.clip_norm is not None:
            self._clip(self.config.clip_norm)
        self.optimizer.step()
        return loss.detach(), outputs.detach()

    def _clip(self, largest: float) -> None:
        """Scale all gradients by what brings the norm of the network's own down to ``largest``.

        Trained feedback is scaled along, but has no say in the norm: its rule decides on the direction of
        its updates, not on the size of the network's.
        """
        feedback = {id(parameter) for parameter in rules.feedback_parameters(self.network)}
        own = [p.grad for p in self.network.parameters() if p.grad is not None and id(p) not in feedback]
        norm = nn.utils.get_total_norm(own)
        nn.utils.clip_grads_with_norm_(self.network.parameters(), largest, norm)

    def _finish_epoch(self, progress: Progress, began: float) -> dict[str, float]:
        epoch = progress.epoch + 1
        judged = evaluate(self.network, self.task, self.val, self.device)
        last = self.config.select is Select.last
        if last or judged.n_correct > progress.best.get("val_correct", -1):
            network = _copied(self.network.state_dict())
            progress.best = {"epoch": epoch, "val_correct": judged.n_correct, "network": network}
        layers = self.alignment()
        progress.alignment += [{"epoch": epoch, **asdict(layer)} for layer in layers]
        return {
            "epoch": epoch,
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": progress.totals["loss"] / progress.totals["seen"],
            "train_accuracy": progress.totals["correct"] / progress.totals["seen"],
            "val_loss": judged.loss,
            "val_accuracy": judged.n_correct / len(self.val),
            "angle": _mean([layer.angle for layer in layers]),
            "sign_agreement": _mean([layer.sign_agreement for layer in layers]),
            "rms_ratio": _mean([layer.rms_ratio for layer in layers]),
            "update_cosine": _mean([layer.update_cosine for layer in layers]),
            "seconds": time.perf_counter() - began,
        }

    def alignment(self) -> list[rules.LayerAlignment]:
        """Feedback and updates of the network as it is, on training images, unless ``alignment=false``."""
        if not self.config.alignment or not rules.feedback_layers(self.network):
            return []
        ((images, labels),) = batches(self.probe, PROBE, self.device)
        return rules.alignment(self.network, lambda: self.task.loss(self.network(images), labels))


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}


def _mean(values: list[float]) -> float:
    """Over the layers that have a value; NaN where none has, as in a plain network."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
