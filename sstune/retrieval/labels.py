"""Labels of images: an item that shares a label with the query is relevant."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sstune.retrieval.codes import as_words


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of N items: one class each, or any number of L labels.

    Args:
        values: (N,) int64, classes; or (N, ceil(L / 64)) uint64, a bit for each label.
        n_labels: L; 0 for classes.
    """

    values: NDArray[Any]
    n_labels: int = 0

    @classmethod
    def of(cls, targets: Tensor) -> Labels:
        """From classes, (N,) of integers, or from labels, (N, L) of 0 and 1 in any dtype.

        Raises:
            ValueError: another shape, classes that are no integers, or labels other than 0 and 1.
        """
        targets = targets.detach().cpu()
        if targets.ndim == 1 and not targets.is_floating_point() and targets.dtype is not torch.bool:
            return cls(targets.long().numpy().copy())
        if targets.ndim != 2 or targets.shape[1] == 0:
            raise ValueError(
                f"expected classes (N,) or labels (N, L), got {targets.dtype} {tuple(targets.shape)}"
            )
        if not ((targets == 0) | (targets == 1)).all():
            raise ValueError("labels of several a sample must be 0 or 1")
        packed = np.packbits(targets.bool().numpy(), axis=1)
        return cls(as_words(packed), targets.shape[1])

    def __len__(self) -> int:
        return len(self.values)

    @property
    def several(self) -> bool:
        """Whether an item may have several labels."""
        return self.n_labels > 0

    def take(self, index: NDArray[Any] | Tensor | slice) -> Labels:
        """The labels of the items at ``index``: integers, a mask or a slice."""
        kept = index.cpu().numpy() if isinstance(index, Tensor) else index
        return Labels(np.asfortranarray(self.values[kept]), self.n_labels)

    def row(self, number: int) -> NDArray[Any]:
        """The labels of one item, as :meth:`shared` takes them: () int64 or (W,) uint64."""
        return self.values[number]

    def shared(self, query: NDArray[Any]) -> NDArray[np.unsignedinteger]:
        """How many labels each item shares with a query.

        Args:
            query: a row of the queries' labels, from :meth:`row`.

        Returns:
            (N,) uint8 (uint16 with more than 255 labels); classes: 0 or 1.
        """
        if not self.several:
            return np.equal(self.values, query).view(np.uint8)
        dtype: type[np.unsignedinteger] = np.uint8 if self.n_labels <= 255 else np.uint16
        shared = np.zeros(len(self), dtype)
        for column, word in enumerate(query):
            np.add(shared, np.bitwise_count(self.values[:, column] & word), out=shared)
        return shared

    def hot(self) -> NDArray[np.bool_]:
        """(N, L) bool, for items with several labels."""
        rows = np.ascontiguousarray(self.values).view(np.uint8)
        return np.unpackbits(rows, axis=1, count=self.n_labels).astype(bool)

    @cached_property
    def most(self) -> int:
        """The largest number of labels of an item."""
        if not self.several:
            return 1
        return int(np.bitwise_count(self.values).sum(1, dtype=np.int64).max(initial=0))
