"""Metrics of a ranking with ties: expectations over all orders of the items at equal distances.

McSherry & Najork, Computing information retrieval performance measures efficiently in the presence of tied
scores (ECIR 2008). Items at one distance form a group. Inside a group every order has the same probability:
all a metric needs is each group's size and its number of hits (relevant items). A query's figures do not
depend on the queries that are computed with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Values = NDArray[np.float64]
_TAIL = 25.0  # Hoeffding: hits are further than sqrt(25 m) from their mean with probability 2 exp(-50)
_CELLS = 1 << 18  # elements of a temporary array


@dataclass(frozen=True, eq=False)
class Groups:
    """Groups of items at equal distances of Q queries, nearest first; D distances.

    Args:
        size: (Q, D), items at each distance.
        hits: (Q, D), relevant ones among them.
    """

    size: Counts
    hits: Counts

    @property
    def before(self) -> Counts:
        """(Q, D), items at smaller distances."""
        return self.size.cumsum(1) - self.size

    @property
    def hits_before(self) -> Counts:
        """(Q, D), relevant items at smaller distances."""
        return self.hits.cumsum(1) - self.hits

    @property
    def relevant(self) -> Counts:
        """(Q,), relevant items."""
        return self.hits.sum(1)

    def inside(self, top: int) -> Counts:
        """(Q, D), how many positions of each group are among the first ``top`` of the ranking."""
        return np.clip(top - self.before, 0, self.size)


def average_precision(groups: Groups, top: int) -> Values:
    """(Q,) expected AP@K; 0 for a query without hits among its first K items.

    AP@K = 1 / (hits in the top K) * sum over these hits of (hits up to its rank) / rank. The group that K
    cuts has a random number of hits in the top K: AP is an expectation over that number.
    """
    before, hits_before, inside = groups.before, groups.hits_before, groups.inside(top)
    whole = inside == groups.size
    start = np.where(inside > 0, before, 0)
    summed = np.where(whole, _summed_precision(start, inside, groups.hits, hits_before), 0.0).sum(1)
    found = np.where(whole, groups.hits, 0).sum(1)
    result = summed / np.maximum(found, 1)
    row, group = np.nonzero((inside > 0) & ~whole)  # one group a query at most
    if len(row):
        cut = _Cut(
            before[row, group],
            groups.size[row, group],
            groups.hits[row, group],
            inside[row, group],
            hits_before[row, group],
            summed[row],
        )
        # How far from its mode the number of hits matters: beyond, probabilities are below 1e-20.
        reach = min(top, int(np.sqrt(_TAIL * top)) + 2)
        step = max(1, _CELLS // (2 * reach + 1))
        parts = [cut.take(slice(start, start + step)) for start in range(0, len(row), step)]
        result[row] = np.concatenate([part.average_precision(reach) for part in parts])
    return result


def _summed_precision(before: Counts, size: Counts, hits: Counts, hits_before: Counts) -> Values:
    """Expected sum of the precisions at the hits of groups that lie in the top K.

    With n = ``size``, r = ``hits``, the sum over positions j = 1 ... n of
    P(hit at j) (1 + hits before the group + E[hits before j in the group | hit at j]) / (before + j)
    = r/n sum of (1 + hits_before + (j - 1) (r - 1)/(n - 1)) / (before + j).
    """
    table = harmonic_numbers(1 << int((before + size).max(initial=0)).bit_length())
    harmonic = table[before + size] - table[before]  # sum of 1 / (before + j)
    others = size - (before + 1) * harmonic  # sum of (j - 1) / (before + j): terms cancel in float64
    share = hits / np.maximum(size, 1)
    other_share = (hits - 1) / np.maximum(size - 1, 1)
    first = (hits_before + 1) * harmonic.astype(np.float64)
    return share * (first + other_share * others.astype(np.float64))


@dataclass(frozen=True, eq=False)
class _Cut:
    """The groups that the end of the top K cuts, each (R,): their first m = ``inside`` positions count.

    ``summed`` is the sum of precisions at the hits of earlier groups.
    """

    before: Counts
    size: Counts
    hits: Counts
    inside: Counts
    hits_before: Counts
    summed: Values

    def take(self, index: slice) -> _Cut:
        return _Cut(**{name: getattr(self, name)[index] for name in self.__dataclass_fields__})

    def average_precision(self, reach: int) -> Values:
        """(R,) expectation over the number t of hits among the first m positions, which is hypergeometric."""
        probability, drawn = self._hits(reach)
        columns = (self.before, self.inside, self.hits_before)
        before, inside, hits_before = (each[:, None] for each in columns)
        summed = self.summed[:, None] + _summed_precision(before, inside, drawn, hits_before)
        each = summed / np.maximum(hits_before + drawn, 1)
        return (probability * np.where(hits_before + drawn > 0, each, 0.0)).sum(1)

    def _hits(self, reach: int) -> tuple[Values, Counts]:
        """Probabilities (R, 2 reach + 1) of numbers of hits, within ``reach`` of the mode; and the numbers.

        P(t + 1) / P(t) = (r - t) (m - t) / ((t + 1) (n - r - m + t + 1)), multiplied up and down from the
        mode.
        """
        n, r, m = (each[:, None] for each in (self.size, self.hits, self.inside))
        mode = (r + 1) * (m + 1) // (n + 2)
        mode = np.clip(mode, np.maximum(0, m - (n - r)), np.minimum(m, r))
        steps = np.arange(reach)
        up, down = mode + steps, mode - steps
        # Both products pass through a ratio of 0 at the end of the range of t and stay 0 beyond it.
        rising = np.cumprod((r - up) * (m - up) / ((up + 1) * (n - r - m + up + 1)), 1)
        falling = np.cumprod(down * (n - r - m + down) / ((r - down + 1) * (m - down + 1)), 1)
        weights = np.abs(np.concatenate([falling[:, ::-1], np.ones_like(mode, np.float64), rising], 1))
        drawn = mode + np.arange(-reach, reach + 1)
        return weights / weights.sum(1, keepdims=True), np.where(weights > 0, drawn, 0)


def expected_hits(groups: Groups, cutoffs: Sequence[int]) -> Values:
    """(Q, C) expected number of hits among the first N items, for each N of ``cutoffs``."""
    share = groups.hits / np.maximum(groups.size, 1)
    each = [np.where((n := groups.inside(top)) == groups.size, groups.hits, n * share) for top in cutoffs]
    return np.stack([one.sum(1) for one in each], 1) if each else np.zeros((len(share), 0))


def precision_within(groups: Groups, radius: int) -> Values:
    """(Q,) share of hits among the items within a Hamming distance; 0 if there are none."""
    size, hits = (each[:, : radius + 1].sum(1) for each in (groups.size, groups.hits))
    return hits / np.maximum(size, 1)


def precision_at_recall(groups: Groups, levels: int = 100) -> Values:
    """(Q, levels) precision at recall 1/levels, 2/levels, ..., 1; 0 for a query without relevant items.

    The precision-recall points are those at the ends of groups, which no order inside a group changes. At
    recall r stands the precision of the first point whose recall is r or more; nothing is interpolated.
    """
    hits, size = groups.hits.cumsum(1), groups.size.cumsum(1)
    relevant = groups.relevant
    precision = hits / np.maximum(size, 1)
    result = np.zeros((len(hits), levels))
    wanted = np.arange(1, levels + 1)
    for row in np.flatnonzero(relevant):
        # The smallest integer number of hits whose share of the relevant items is the level or more.
        needed = -(-wanted * relevant[row] // levels)
        result[row] = precision[row, np.searchsorted(hits[row], needed)]
    return result


def ndcg(histograms: Counts, top: int) -> Values:
    """(Q,) expected NDCG at ``top``: gain 2^shared - 1, discount log2(1 + rank); 0 without relevant items.

    Args:
        histograms: (Q, S + 1, D), items by their number of shared labels and their distance.
    """
    size = histograms.sum(1)
    discount = discounts(min(top, int(size.sum(1).max(initial=0))))
    gain = np.exp2(np.arange(histograms.shape[1])) - 1
    mean_gain = (histograms * gain[:, None]).sum(1) / np.maximum(size, 1)
    found = (mean_gain * _discount_of(size, discount)).sum(1)
    best_first = histograms.sum(2)[:, ::-1]
    ideal = (_discount_of(best_first, discount) * gain[::-1]).sum(1)
    return found / np.where(ideal > 0, ideal, 1)


def _discount_of(size: Counts, table: NDArray[np.longdouble]) -> Values:
    """(Q, G) sum of the discounts over the ranks of each group."""
    end = size.cumsum(1)
    last = len(table) - 1
    return (table[np.minimum(end, last)] - table[np.minimum(end - size, last)]).astype(np.float64)


@lru_cache(maxsize=2)  # for the last group and for the one that K cuts
def harmonic_numbers(n: int) -> NDArray[np.longdouble]:
    """(n + 1,) sums of 1/i for i up to 0, 1, ..., n, in extended precision where the platform has it."""
    table = np.zeros(n + 1, np.longdouble)
    np.cumsum(1 / np.arange(1, n + 1, dtype=np.longdouble), out=table[1:])
    return table


@lru_cache(maxsize=4)
def discounts(n: int) -> NDArray[np.longdouble]:
    """(n + 1,) sums of 1/log2(1 + i) for i up to 0, 1, ..., n."""
    table = np.zeros(n + 1, np.longdouble)
    np.cumsum(1 / np.log2(1 + np.arange(1, n + 1, dtype=np.longdouble)), out=table[1:])
    return table
