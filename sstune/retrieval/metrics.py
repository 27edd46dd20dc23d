"""Quality of a ranking by Hamming distance, for each query.

Ties are frequent: codes of k bits have k + 1 distances. The figures are therefore expectations over all
orders inside equal distances (``tie_aware``); AP of the stable order (ties by database index) and of the
refined order (ties by the real outputs) stand beside them.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sstune.retrieval import tie_aware
from sstune.retrieval.codes import Codes
from sstune.retrieval.counting import Counted, Counter, DeviceCounter, HostCounter, Search
from sstune.retrieval.labels import Labels
from sstune.retrieval.order import RefinedOrder
from sstune.retrieval.tie_aware import Groups, Values

_QUERIES = 64  # of a task of a thread
_NDCG_TOP = 1000


@dataclass(frozen=True, eq=False)
class RankSettings:
    """What is measured of a ranking.

    Args:
        top: K of AP@K; None: all items.
        cutoffs: N of precision@N and recall@N.
        radius: Hamming radius of the precision within a ball.
        stable: whether to compute AP of the stable order, which takes half of the time.
        outputs: real outputs of queries (Q, k) and database (N, k), to compute AP of the refined order.
        skip: (Q,) int64, the item of the database that each query leaves out, since it is the query itself;
            -1: none.
        device: where torch counts and sorts; None: NumPy counts, with as many threads as torch has.
    """

    top: int | None = None
    cutoffs: tuple[int, ...] = field(default=tuple(range(100, 1001, 100)))
    radius: int = 2
    stable: bool = True
    outputs: tuple[Tensor, Tensor] | None = None
    skip: NDArray[np.int64] | None = None
    device: torch.device | str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for a K or N below 1, or a negative radius."""
        for n in (*self.cutoffs, 1 if self.top is None else self.top):
            if n < 1:
                raise ValueError(f"a cutoff of a ranking must be 1 or more, got {n}")
        if self.radius < 0:
            raise ValueError(f"a Hamming radius must be 0 or more, got {self.radius}")


EVERYTHING = RankSettings()


@dataclass(frozen=True, eq=False)
class Ranked:
    """Metrics of Q queries, float64; the mean over queries is the figure of a set (mAP).

    Args:
        relevant: (Q,) int64, relevant items in the database.
        ap: (Q,) expected AP@K; a query without hits in the top K has 0.
        ap_stable: (Q,) AP@K of the stable order; None if it was not asked for.
        ap_refined: (Q,) AP@K of the refined order; None without outputs.
        precision: (Q, cutoffs) expected hits among the first N, over min(N, size of the database).
        recall: (Q, cutoffs) expected hits among the first N, over the relevant items; 0 if there are none.
        precision_within: (Q,) share of hits within the Hamming radius; 0 if nothing is there.
        precision_at_recall: (Q, 100) precision at recall 0.01, 0.02, ..., 1: at the end of the first group of
            equal distances that reaches this recall, not interpolated; 0 without relevant items.
        ndcg: (Q,) expected NDCG@1000, gain 2^shared - 1, discount log2(1 + rank); None for classes.
    """

    relevant: NDArray[np.int64]
    ap: Values
    ap_stable: Values | None
    ap_refined: Values | None
    precision: Values
    recall: Values
    precision_within: Values
    precision_at_recall: Values
    ndcg: Values | None


def rank(
    queries: Codes,
    query_labels: Labels,
    database: Codes,
    database_labels: Labels,
    settings: RankSettings = EVERYTHING,
) -> Ranked:
    """Rank the database for each query, and compute all metrics.

    Raises:
        ValueError: numbers of items, bits, labels or outputs do not fit together.
    """
    search = _search(queries, query_labels, database, database_labels, settings)
    refined = None
    if settings.outputs is not None:
        refined = RefinedOrder(*settings.outputs)
        if (len(refined.queries), refined.columns.shape[1]) != (len(queries), len(database)):
            raise ValueError("outputs: expected those of the queries and of the database")
    counter = HostCounter(search, _top(search, settings), settings.stable, refined)
    parts = [_measure(search, counted, settings) for counted in _counted(counter, settings)]
    return _joined(parts)


def average_precision(
    queries: Codes,
    query_labels: Labels,
    database: Codes,
    database_labels: Labels,
    settings: RankSettings = EVERYTHING,
) -> Values:
    """(Q,) expected AP@K alone, :attr:`Ranked.ap`; uses ``top``, ``skip`` and ``device`` of the settings.

    Raises:
        ValueError: numbers of items, bits or labels do not fit together.
    """
    search = _search(queries, query_labels, database, database_labels, settings)
    top = _top(search, settings)
    parts = [
        tie_aware.average_precision(_groups(counted), top)
        for counted in _counted(HostCounter(search, top), settings)
    ]
    return np.concatenate(parts)


def _search(
    queries: Codes, query_labels: Labels, database: Codes, database_labels: Labels, settings: RankSettings
) -> Search:
    skip = np.full(len(queries), -1) if settings.skip is None else np.asarray(settings.skip, np.int64)
    return Search(queries, query_labels, database, database_labels, skip)


def _top(search: Search, settings: RankSettings) -> int:
    n = len(search.database)
    return n if settings.top is None else min(settings.top, n)


def _counted(host: HostCounter, settings: RankSettings) -> Iterator[Counted]:
    """Counts of all queries, some at a time, in their order."""
    n = len(host.search.queries)
    counter: Counter = host
    step = _QUERIES
    if settings.device is not None:
        counter = device = DeviceCounter(host, torch.device(settings.device))
        step = device.batch
    starts = range(0, max(n, 1), step)
    stops = [min(start + step, n) for start in starts]
    if settings.device is not None or len(starts) == 1 or torch.get_num_threads() == 1:
        yield from map(counter, starts, stops)
        return
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        yield from pool.map(counter, starts, stops)


def _groups(counted: Counted) -> Groups:
    return Groups(counted.histograms.sum(1), counted.histograms[:, 1:].sum(1))


def _measure(search: Search, counted: Counted, settings: RankSettings) -> Ranked:
    """The metrics of the queries of one part."""
    groups, relevant = _groups(counted), counted.histograms[:, 1:].sum((1, 2))
    hits = tie_aware.expected_hits(groups, settings.cutoffs)
    positions = np.minimum(np.array(settings.cutoffs, np.int64), groups.size.sum(1)[:, None])
    return Ranked(
        relevant=relevant,
        ap=tie_aware.average_precision(groups, _top(search, settings)),
        ap_stable=counted.stable,
        ap_refined=counted.refined,
        precision=hits / np.maximum(positions, 1),
        recall=hits / np.maximum(relevant, 1)[:, None],
        precision_within=tie_aware.precision_within(groups, settings.radius),
        precision_at_recall=tie_aware.precision_at_recall(groups),
        ndcg=tie_aware.ndcg(counted.histograms, _NDCG_TOP) if search.query_labels.several else None,
    )


def _joined(parts: list[Ranked]) -> Ranked:
    """One after another."""
    columns: dict[str, Any] = {}
    for name in Ranked.__dataclass_fields__:
        values = [getattr(part, name) for part in parts]
        columns[name] = None if values[0] is None else np.concatenate(values)
    return Ranked(**columns)
