"""The interface of a task. Rules do not depend on tasks; all other code uses this interface only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sstune.datasets import Batch, Splits
from sstune.registry import Registry
from sstune.schema import TaskConfig
from sstune.tasks.auditing import AuditProfile
from sstune.tasks.neighbours import Neighbours
from sstune.tasks.objective import Goal, Objective
from sstune.tasks.score import Score


class Task(ABC):
    """Defines the width of the head, the training loss, the metric, and the objectives of attacks.

    Attributes:
        outputs: units of the head.
        metric: name of the metric that :meth:`score` computes.
        objectives: names of the losses that an attack may increase; the first is the default.
        loss_of_samples: whether the loss is a mean over samples, so that a batch may be divided into parts; a
            loss of pairs is not.
        searches: whether it needs a database besides the three splits (``split.protocol``).
        reference_file: name of the file of a run that holds its :meth:`reference`; None: it is not kept.
        audit: how it is audited for gradient masking; None: it cannot be.
    """

    outputs: int
    metric: str
    objectives: Sequence[str]
    loss_of_samples: bool = True
    searches: bool = False
    reference_file: str | None = None
    audit: AuditProfile | None = None

    @abstractmethod
    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Mean loss of a batch, a scalar, from the network's ``outputs``, (N, ...)."""

    @abstractmethod
    def predict(self, outputs: Tensor) -> Tensor:
        """Predictions, (N, ...), from the network's outputs; :meth:`score` needs nothing else of them."""

    @abstractmethod
    def score(self, predictions: Tensor, targets: Tensor, reference: Any = None) -> Score:
        """The metric of a set of samples.

        Args:
            predictions: (N, ...) on the CPU, of :meth:`predict`.
            targets: (N, ...) on the CPU.
            reference: of :meth:`reference`.
        """

    @abstractmethod
    def objective(self, batch: Batch, goal: Goal, clean_outputs: Callable[[], Tensor]) -> Objective:
        """The objective of an attack on ``batch``.

        Args:
            clean_outputs: computes the outputs for the batch as it is; only some objectives call it.
        """

    def init_head(self, head: nn.Module) -> None:  # noqa: B027  # most tasks keep the backbone's
        """Initialise the head of a network that is to be trained, before weights are loaded."""

    def begin_training(self, splits: Splits, seed: int, device: torch.device) -> None:  # noqa: B027
        """Called once before training, and before :meth:`load_state_dict`, for losses with a state."""

    @property
    def lr_factors(self) -> dict[str, float]:
        """Pattern of layers -> factor on their learning rate; those of the configuration come on top."""
        return {}

    def parameters(self) -> Sequence[nn.Parameter]:
        """Parameters of the loss that are trained along, at :attr:`lr_factor` times the learning rate."""
        return ()

    @property
    def lr_factor(self) -> float:
        """Factor on the learning rate of :meth:`parameters`."""
        return 1.0

    def training_loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """:meth:`loss` of a training batch; may update the state of the loss."""
        return self.loss(outputs, batch)

    def batch_scores(self, outputs: Tensor, batch: Batch) -> Tensor | None:
        """The score of each sample of a training batch, (N,), on its device, for the history; None if single
        samples have no score."""
        return None

    def attackable(self, score: Score) -> Tensor:
        """(N,) bool, the samples to attack, given the score without an attack."""
        return torch.ones(score.n, dtype=torch.bool)

    def reference(
        self, network: nn.Module, splits: Splits, device: torch.device, split: Literal["val", "test"] = "test"
    ) -> Any:
        """Data that :meth:`score` needs besides targets, computed once for a network, such as the codes of a
        retrieval database; None if it needs none.

        Args:
            split: the split that is scored.
        """
        return None

    def save_reference(self, path: Path, reference: Any, splits: Splits, model: str) -> None:
        """Write a reference for the test split to ``path``; ``model``: sha256 of the weights."""
        raise NotImplementedError

    def load_reference(self, path: Path, splits: Splits, model: str) -> Any:
        """Read what :meth:`save_reference` wrote.

        Raises:
            ValueError: it is damaged, or of another network or other data.
        """
        raise NotImplementedError

    def neighbours(
        self, predictions: Tensor, reference: Any, n: int, targets: Tensor | None = None
    ) -> Neighbours | None:
        """The ``n`` items of ``Splits.database`` that are nearest to each prediction, all if there are fewer.

        None: the task has no database.

        Args:
            predictions: (N, ...) on the CPU, of :meth:`predict`.
            reference: of :meth:`reference`, for the test split.
            targets: (N, ...) on the CPU, to say which items are relevant.
        """
        return None

    def bounds(self, predictions: Tensor, targets: Tensor, reference: Any) -> Mapping[str, float]:
        """Figures that an attack could reach if it chose its outputs freely, by name."""
        return {}

    def chance(self, targets: Tensor, reference: Any, n_classes: int) -> float:
        """The metric of a network that knows nothing of the images, for an audit; not above it is what an
        attack leaves at an eps that no network withstands."""
        raise NotImplementedError

    def floor(self, targets: Tensor, reference: Any, n_classes: int) -> float:
        """The metric that an attack surely reaches if it may choose any image, for an audit."""
        return 0.0

    def saturated(self, outputs: Tensor, batch: Batch) -> Tensor:
        """(N,) in [0,1], how far the audit's loss of each sample is saturated, for an audit."""
        raise NotImplementedError

    def changed(self, predictions: Tensor, others: Tensor) -> Tensor:
        """(N,) bool, where two predictions differ by more than rounding."""
        return (predictions != others).reshape(len(predictions), -1).any(1)

    def begin_epoch(self, epoch: int, epochs: int) -> None:  # noqa: B027  # most tasks have nothing to do
        """Called before each epoch of training (0-based), for losses that change on the way."""

    def state_dict(self) -> dict[str, Tensor]:
        """State of the loss between batches; it is part of every checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:  # noqa: B027
        """Restore the state that :meth:`state_dict` returned."""


# Constructors ``(config, n_classes) -> Task``.
TASKS: Registry[Callable[..., Task]] = Registry("task.name")


def build(config: TaskConfig, n_classes: int) -> Task:
    """The task that ``config`` names, for ``n_classes`` classes.

    Raises:
        RequestError: unknown name.
    """
    return TASKS[config.name](config, n_classes)
