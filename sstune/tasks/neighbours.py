"""The items of a database that are nearest to each query."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Of N queries the n nearest items each, the nearest first.

    Args:
        positions: (N, n), places of the items in the database.
        distances: (N, n), such as Hamming distances.
        relevant: (N, n) bool, whether an item is relevant to the query; None: unknown.
    """

    positions: npt.NDArray[np.int64]
    distances: npt.NDArray[np.int64]
    relevant: npt.NDArray[np.bool_] | None = None

    def take(self, index: npt.NDArray[np.int64]) -> Neighbours:
        """Those of the queries at ``index``."""
        relevant = None if self.relevant is None else self.relevant[index]
        return Neighbours(self.positions[index], self.distances[index], relevant)
