"""What metrics need of each query: histograms over distance and shared labels, and the ranks of its hits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sstune.retrieval.codes import Codes
from sstune.retrieval.labels import Labels
from sstune.retrieval.order import RefinedOrder, stable_order
from sstune.retrieval.tie_aware import Counts, Values

_BLOCK = 1 << 16  # items whose histogram is made in a CPU's cache
_CELLS = 1 << 24  # distances that a device holds at a time, each 8 bytes, about four times


@dataclass(frozen=True, eq=False)
class Search:
    """Q queries in a database of N items.

    Args:
        skip: (Q,) int64, the item of the database that each query leaves out (itself); -1: none.

    Raises:
        ValueError: numbers of items, bits or kinds of labels do not fit together.
    """

    queries: Codes
    query_labels: Labels
    database: Codes
    database_labels: Labels
    skip: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.queries.bits != self.database.bits:
            raise ValueError(f"queries have {self.queries.bits} bits, the database has {self.database.bits}")
        if self.query_labels.n_labels != self.database_labels.n_labels:
            raise ValueError("queries and database have different kinds or numbers of labels")
        for codes, labels in ((self.queries, self.query_labels), (self.database, self.database_labels)):
            if len(codes) != len(labels):
                raise ValueError(f"{len(codes)} codes and labels of {len(labels)} items")
        if self.skip.shape != (len(self.queries),):
            raise ValueError(f"skip: expected ({len(self.queries)},), got {self.skip.shape}")
        if ((self.skip < -1) | (self.skip >= len(self.database))).any():
            raise ValueError(f"skip: expected -1 or an item of {len(self.database)}")

    @property
    def levels(self) -> int:
        """1 + the largest number of labels that a query and an item can share."""
        return 1 + min(self.query_labels.most, self.database_labels.most)

    @property
    def apart(self) -> int:
        """The distance of the item that a query leaves out: larger than that of any other."""
        return self.queries.bits + 1

    def size(self, number: int) -> int:
        """How many items the query with that number ranks."""
        return len(self.database) - int(self.skip[number] >= 0)


@dataclass(frozen=True, eq=False)
class Counted:
    """Histograms (Q, levels, bits + 1), items by shared labels and distance; AP of two orders, (Q,)."""

    histograms: Counts
    stable: Values | None
    refined: Values | None


class Counter(Protocol):
    """Counts for the queries start ... stop - 1 of a search."""

    def __call__(self, start: int, stop: int) -> Counted: ...


def average_precision_of(relevant: NDArray[np.bool_]) -> float:
    """AP of one ranking.

    Args:
        relevant: (K,) whether the item at each rank is relevant.
    """
    ranks = np.flatnonzero(relevant) + 1
    return float((np.arange(1, len(ranks) + 1) / ranks).sum() / max(1, len(ranks)))


def histogram(
    distances: NDArray[np.unsignedinteger], shared: NDArray[np.unsignedinteger], shape: tuple[int, int]
) -> Counts:
    """How many items share s labels with a query and have distance d, at [s, d] of an array of that shape."""
    counted = np.zeros(shape[0] * shape[1], np.int64)
    dtype = np.uint16 if len(counted) < 1 << 16 else np.uint32
    for start in range(0, len(distances), _BLOCK):
        key = np.multiply(shared[start : start + _BLOCK], shape[1], dtype=dtype)
        key += distances[start : start + _BLOCK]
        counted += np.bincount(key, minlength=len(counted))
    return counted.reshape(shape)


@dataclass(frozen=True, eq=False)
class HostCounter:
    """Counts with NumPy, one query after another.

    Args:
        top: K of the AP of the orders.
        stable: whether to compute the AP of the stable order.
        refined: the refined order, to compute its AP.
    """

    search: Search
    top: int
    stable: bool = False
    refined: RefinedOrder | None = None

    def __call__(self, start: int, stop: int) -> Counted:
        search, n = self.search, stop - start
        columns = search.apart + 1
        histograms = np.empty((n, search.levels, columns - 1), np.int64)
        stable, refined = np.zeros(n), np.zeros(n)
        for place, number in enumerate(range(start, stop)):
            distances = search.database.distances(search.queries.words[number])
            shared = search.database_labels.shared(search.query_labels.row(number))
            if search.skip[number] >= 0:
                distances[search.skip[number]] = search.apart
            histograms[place] = histogram(distances, shared, (search.levels, columns))[:, :-1]
            top = min(self.top, search.size(number))
            relevant = shared > 0
            if self.stable:
                stable[place] = average_precision_of(relevant[stable_order(distances, top)])
            if self.refined is not None:
                refined[place] = average_precision_of(relevant[self.refined(number, distances, top)])
        return Counted(
            histograms, stable if self.stable else None, refined if self.refined is not None else None
        )


class DeviceCounter:
    """Counts with torch on a device, many queries at a time; the results equal those of :class:`HostCounter`.

    Distances come from a matrix product of ±1, which is exact in float32 and TF32. The refined order is made
    on the host.
    """

    def __init__(self, host: HostCounter, device: torch.device) -> None:
        self.host, self.search, self.device = host, host.search, device
        self.signs = self._signs(host.search.database)
        self.labels = self._labels(host.search.database_labels)

    @property
    def batch(self) -> int:
        """How many queries are counted at a time."""
        return max(1, _CELLS // max(1, len(self.search.database)))

    @torch.no_grad()
    def __call__(self, start: int, stop: int) -> Counted:
        with torch.autocast(self.device.type, enabled=False):  # bfloat16 would round sums beyond 256
            return self._counted(start, stop)

    def _counted(self, start: int, stop: int) -> Counted:
        search, picked = self.search, slice(start, stop)
        distances = (search.queries.bits - self._signs(search.queries.take(picked)) @ self.signs.T) / 2
        distances = distances.to(torch.int16 if search.apart < 1 << 15 else torch.int32)
        rows = np.flatnonzero(search.skip[picked] >= 0)
        if len(rows):
            skipped = torch.from_numpy(search.skip[picked][rows]).to(self.device)
            distances[torch.from_numpy(rows).to(self.device), skipped] = search.apart
        shared = self._shared(search.query_labels.take(picked))
        histograms = self._histograms(distances, shared)
        host = self.host
        stable = self._stable(start, distances, shared > 0) if host.stable else None
        refined = HostCounter(search, host.top, False, host.refined)(start, stop).refined
        return Counted(histograms, stable, refined)

    def _histograms(self, distances: Tensor, shared: Tensor) -> Counts:
        n, columns = len(distances), self.search.apart + 1
        cells = self.search.levels * columns
        key = torch.arange(n, device=self.device)[:, None] * cells + shared * columns + distances
        counted = torch.bincount(key.flatten(), minlength=n * cells).cpu().numpy()
        return np.ascontiguousarray(counted.reshape(n, self.search.levels, columns)[:, :, :-1])

    def _stable(self, start: int, distances: Tensor, relevant: Tensor) -> Values:
        """(q,) AP of the stable order."""
        order = torch.sort(distances, dim=1, stable=True).indices[:, : self.host.top]
        ranked = relevant.gather(1, order).cpu().numpy()
        sizes = [self.search.size(start + place) for place in range(len(ranked))]
        return np.array([average_precision_of(row[:size]) for row, size in zip(ranked, sizes, strict=True)])

    def _shared(self, queries: Labels) -> Tensor:
        """(q, N) int64, shared labels."""
        labels = self._labels(queries)
        if not queries.several:
            return (labels[:, None] == self.labels).long()
        return F.linear(labels, self.labels).long()

    def _signs(self, codes: Codes) -> Tensor:
        return torch.from_numpy(codes.signs()).to(self.device).float()

    def _labels(self, labels: Labels) -> Tensor:
        """(N,) int64 classes or (N, L) float32 of 0 and 1."""
        if not labels.several:
            return torch.from_numpy(labels.values).to(self.device)
        return torch.from_numpy(labels.hot()).to(self.device).float()
