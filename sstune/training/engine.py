"""The training loop: any network, task, rule and schedule; resumable at every step, bit-equal on the CPU."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sstune import rules
from sstune.arithmetic import training_arithmetic
from sstune.datasets import SPLIT_SEED, Batch, Loader, Splits, batches
from sstune.interrupt import StopFlag
from sstune.schema import Select
from sstune.seeding import seed_from
from sstune.training.adversarial import adversary_of
from sstune.training.checkpoint import Progress
from sstune.training.distributed import evaluate_distributed
from sstune.training.learner import Learner
from sstune.training.optimization import average_of, build_schedule, frozen_modules, weight_decay_factor
from sstune.training.step import Step

PROBE = 128  # images on which updates are compared with true gradients
SAVE_EVERY = 600.0  # seconds between checkpoints in the middle of an epoch


class Trainer:
    """Trains a network on ``loader``, validates it after each epoch, and keeps the chosen epoch's state.

    Args:
        loader: of this process's part of ``splits.train``.
        save: called with the progress after each epoch, every ten minutes, and when a signal stops the run.
        stop: checked after every step.
    """

    def __init__(
        self,
        learner: Learner,
        loader: Loader,
        splits: Splits,
        save: Callable[[Progress], None],
        stop: StopFlag,
    ) -> None:
        self.learner = learner
        self.config = config = learner.config
        self.network = learner.network
        self.task = learner.task
        self.optimizer = learner.optimizer
        self.device = learner.device
        self.world = learner.world
        self.loader = loader
        self.splits = splits
        self.save = save
        self.stop = stop
        mine = loader.shard.of(min(config.batch_size, len(loader.split)))
        self.step = Step(learner, mine.stop - mine.start)
        self.adversary = adversary_of(learner, self.step.forward.size)
        self.average = average_of(learner.network, config.ema)
        self.probe, _ = loader.split.sample(PROBE, SPLIT_SEED)  # stored images are sorted by class
        self.factor = build_schedule(config.schedule, config.epochs, len(loader))
        self.saved = time.perf_counter()

    def fit(self, progress: Progress) -> Progress:
        """Run the remaining epochs; ``patience`` may end training earlier.

        Raises:
            Stopped: a signal came; the state is saved.
            FloatingPointError: the loss is no longer finite.
        """
        if self.average is not None and progress.average:
            self.average.load_state_dict(progress.average)
        while progress.epoch < self.config.epochs and not self._out_of_patience(progress):
            began = time.perf_counter() - progress.totals.get("seconds", 0.0)
            self._train_epoch(progress, began)
            progress.history.append(self._finish_epoch(progress, began))
            progress.seconds += progress.history[-1]["seconds"]
            progress.epoch, progress.step, progress.totals = progress.epoch + 1, 0, {}
            self._save(progress)
        return progress

    def _out_of_patience(self, progress: Progress) -> bool:
        """Whether validation has not become better for ``patience`` epochs."""
        patience = self.config.patience
        return patience is not None and progress.epoch - progress.best.get("epoch", 0) >= patience

    def _save(self, progress: Progress) -> None:
        progress.average = self.average.state_dict() if self.average is not None else {}
        self.save(progress)
        self.saved = time.perf_counter()

    def _train_epoch(self, progress: Progress, began: float) -> None:
        self.task.begin_epoch(progress.epoch, self.config.epochs)
        self.network.train()
        for module in frozen_modules(self.network):
            module.eval()
        sums = self._sums(progress)
        bar = tqdm(
            desc=f"epoch {progress.epoch + 1}/{self.config.epochs}",
            total=len(self.loader),
            initial=progress.step,
            leave=False,
            disable=not (sys.stderr.isatty() and self.world.is_main),
        )
        with training_arithmetic(self.config.precision, benchmark=not self.config.deterministic):
            for batch in self.loader.epoch(progress.epoch, progress.step):
                sums += self._train_batch(batch, progress)
                progress.step += 1
                bar.update()
                self._pause(progress, sums, began)
        bar.close()
        progress.totals = self._totals(sums, began)
        if not math.isfinite(progress.totals["loss"]):
            raise FloatingPointError(
                f"the training loss is {progress.totals['loss']} in epoch {progress.epoch + 1}: "
                f"lower optimizer.lr, set clip_norm, or use rule.scale=weight_rms"
            )

    def _sums(self, progress: Progress) -> Tensor:
        """Loss, score and number of the images of this epoch so far, in the first process; on the device."""
        totals = progress.totals if self.world.is_main else {}
        sums = [totals.get(name, 0.0) for name in ("loss", "score", "seen")]
        return torch.tensor(sums, dtype=torch.float64, device=self.device)

    def _train_batch(self, batch: Batch, progress: Progress) -> Tensor:
        """Take one step. Returns loss and score, summed over this process's images, and their number."""
        self._set_rates(progress.epoch * len(self.loader) + progress.step)
        if self.world.size > 1:  # dropout: each process its own, wherever training was taken up
            where = ("dropout", progress.epoch, progress.step, self.world.rank)
            torch.manual_seed(seed_from(self.config.seed, *where))
        total = self._batch_total(progress.step)
        if self.adversary is not None:
            key = progress.epoch, progress.step
            batch = self.adversary(batch, key, self.loader.shard.of(total))
        loss, score = self.step(batch, total)
        if self.average is not None:
            self.average.update_parameters(self.network)
        n = torch.full((), len(batch), dtype=torch.float64, device=self.device)
        return torch.stack([loss.double() * len(batch), score.double(), n])

    def _batch_total(self, step: int) -> int:
        """Images of a step's batch in all processes."""
        return min(self.config.batch_size, len(self.loader.split) - step * self.config.batch_size)

    def _pause(self, progress: Progress, sums: Tensor, began: float) -> None:
        """Save in the middle of an epoch if it is time, and stop if a signal came to any process."""
        asked = bool(self.stop)
        due = time.perf_counter() - self.saved > SAVE_EVERY
        decision = self.world.all_reduce_max(2 if asked else int(due))
        if decision and progress.step < len(self.loader):
            progress.totals = self._totals(sums, began)
            self._save(progress)
            if decision == 2:
                self.stop.signal = self.stop.signal or signal.SIGTERM
                raise self.stop.stop()

    def _totals(self, sums: Tensor, began: float) -> dict[str, float]:
        loss, score, seen = self.world.sum(sums).tolist()
        seconds = time.perf_counter() - began
        return {"loss": loss, "score": score, "seen": int(seen), "seconds": seconds}

    def _set_rates(self, step: int) -> None:
        """Learning rate and weight decay of an optimiser step, in every group of parameters."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.optimizer.lr * self.factor(step) * group.get("lr_factor", 1.0)
            group["weight_decay"] = self.weight_decay(step // len(self.loader))

    def weight_decay(self, epoch: int) -> float:
        """Weight decay in a 0-based epoch."""
        return self.config.optimizer.weight_decay * weight_decay_factor(self.config.optimizer, epoch)

    def _finish_epoch(self, progress: Progress, began: float) -> dict[str, float]:
        epoch = progress.epoch + 1
        network = self.network if self.average is None else self.average.module
        reference = self.task.reference(network, self.splits, self.device, "val")
        judged = evaluate_distributed(network, self.task, self.splits.val, self.device, self.world, reference)
        metric, score = self.task.metric, judged.score
        last = self.config.select is Select.last
        if last or score.value > progress.best.get("val_score", -1.0):
            state = _copied(network.state_dict() | _extra_state(self.network))
            progress.best = {
                "epoch": epoch,
                "val_score": score.value,
                "val": score.fields(metric),
                "network": state,
            }
        layers = self.alignment()
        progress.alignment += [{"epoch": epoch, **asdict(layer)} for layer in layers]
        return {
            "epoch": epoch,
            "lr": self.config.optimizer.lr * self.factor(epoch * len(self.loader) - 1),
            "train_loss": progress.totals["loss"] / progress.totals["seen"],
            f"train_{metric}": progress.totals["score"] / progress.totals["seen"],
            "val_loss": judged.loss,
            f"val_{metric}": score.value,
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
        (batch,) = batches(self.probe, PROBE, self.device)
        return rules.alignment(self.network, lambda: self.task.loss(self.network(batch.images), batch))


def _extra_state(network: nn.Module) -> dict[str, Any]:
    """What a network keeps besides tensors (how often feedback was drawn); an average does not follow it."""
    return {name: value for name, value in network.state_dict().items() if not isinstance(value, Tensor)}


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}


def _mean(values: list[float]) -> float:
    """Over the layers that have a value; NaN where none has, as in a plain network."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
