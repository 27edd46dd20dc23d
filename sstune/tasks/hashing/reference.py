"""The retrieval database of a network: its codes and labels, and those of the training images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from sstune.copying import to_device
from sstune.retrieval import Codes, Labels, average_precision


@dataclass(frozen=True, eq=False)
class Reference:
    """What queries are ranked against.

    Args:
        codes: of the N database images, in the database's order; ``labels`` likewise.
        train: (M, k) int8, codes of the training images, 1 or -1; ``train_targets`` their targets.
        outputs: (N, k) float32 of the database images, where ties are to be broken by them.
    """

    codes: Codes
    labels: Labels
    train: Tensor
    train_targets: Tensor
    outputs: Tensor | None = None


@dataclass(frozen=True, eq=False)
class DatabaseRanking:
    """Ranks the database for N queries.

    Args:
        reference: the database.
        targets: of the queries.
        top: K of AP@K; None: all.
    """

    reference: Reference
    targets: Tensor
    top: int | None

    def __call__(self, outputs: Tensor) -> Tensor:
        """(N, k) outputs -> (N,) float32 average precision, with ties in expectation."""
        found = average_precision(
            Codes.of(outputs.detach().cpu()),
            Labels.of(self.targets.cpu()),
            self.reference.codes,
            self.reference.labels,
            self.top,
        )
        return to_device(torch.from_numpy(found).float(), outputs.device)

    def take(self, index: Tensor) -> Self:
        """The queries at ``index``."""
        return replace(self, targets=self.targets[index])
