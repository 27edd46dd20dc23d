"""Definitions of the metrics, written out for one query: exact fractions over all orders of tied items."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal, localcontext
from fractions import Fraction


def hamming(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))


def orders(distances: Sequence[int]) -> Iterator[list[int]]:
    """Every order of the items that puts nearer items first."""
    groups = [[i for i, d in enumerate(distances) if d == value] for value in sorted(set(distances))]
    for parts in itertools.product(*(itertools.permutations(group) for group in groups)):
        yield [item for part in parts for item in part]


def expectation(distances: Sequence[int], metric: Callable[[list[int]], Fraction | float]) -> float:
    """Mean of a metric of an order, over all orders; all have the same probability."""
    values = [metric(order) for order in orders(distances)]
    if all(isinstance(value, Fraction) for value in values):
        return float(sum(values, Fraction(0)) / len(values))
    return math.fsum(values) / len(values)


def average_precision(relevant: Sequence[bool], top: int | None = None) -> Fraction:
    """Of items in their order: the mean precision at the hits among the first ``top``."""
    hits, summed = 0, Fraction(0)
    for position, hit in enumerate(relevant[:top], start=1):
        if hit:
            hits += 1
            summed += Fraction(hits, position)
    return summed / hits if hits else Fraction(0)


def ndcg(shared: Sequence[int], top: int) -> float:
    """Of items in their order, by their numbers of shared labels."""

    def gained(values: Sequence[int]) -> float:
        terms = [(2**value - 1) / math.log2(1 + rank) for rank, value in enumerate(values[:top], start=1)]
        return math.fsum(terms)

    best = gained(sorted(shared, reverse=True))
    return gained(shared) / best if best else 0.0


def tied_average_precision(groups: Sequence[tuple[int, int]], top: int) -> Fraction:
    """Exact expected AP@K from (size, hits) of each group, by the distribution of hits before each position.

    Independent of the closed form: for each number t of hits in the top K, and each position of the group
    that K cuts, probabilities are ratios of binomial coefficients.
    """
    position, hits, summed = 0, 0, Fraction(0)
    for size, found in groups:
        inside = min(size, top - position)
        if inside == size:
            summed += group_sum(position, size, found, hits)
            position, hits = position + size, hits + found
            continue
        if inside == 0:
            break
        total = Fraction(0)
        for drawn in range(max(0, inside - (size - found)), min(found, inside) + 1):
            ways = math.comb(found, drawn) * math.comb(size - found, inside - drawn)
            if hits + drawn:
                value = (summed + group_sum(position, inside, drawn, hits)) / (hits + drawn)
                total += Fraction(ways, math.comb(size, inside)) * value
        return total
    return summed / hits if hits else Fraction(0)


def group_sum(before: int, size: int, found: int, hits: int) -> Fraction:
    """Expected sum of precisions at the hits of a group: position by position."""
    summed = Fraction(0)
    for place in range(1, size + 1):
        others = Fraction((place - 1) * (found - 1), size - 1) if size > 1 else Fraction(0)
        summed += Fraction(found, size) * (hits + 1 + others) / (before + place)
    return summed


def cut_average_precision(earlier: tuple[int, int], group: tuple[int, int], inside: int) -> float:
    """Expected AP@K of two groups where K cuts the second one after ``inside`` positions, for large groups.

    Decimal numbers of 50 digits; sums position by position; P(t + 1) / P(t) from the smallest t on, of all t.
    """
    with localcontext() as context:
        context.prec = 50
        before, hits = earlier
        size, found = group
        summed = _decimal_sum(before, hits, 0, *_sums(0, before))
        reciprocals, others = _sums(before, inside)
        drawn = max(0, inside - (size - found))
        weight, weights, total = Decimal(1), Decimal(0), Decimal(0)
        while drawn <= min(found, inside):
            value = summed + _decimal_sum(inside, drawn, hits, reciprocals, others)
            total += weight * value / (hits + drawn) if hits + drawn else 0
            weights += weight
            weight *= Decimal((found - drawn) * (inside - drawn))
            weight /= Decimal((drawn + 1) * (size - found - inside + drawn + 1))
            drawn += 1
        return float(total / weights)


def _sums(before: int, size: int) -> tuple[Decimal, Decimal]:
    """Sums over j = 1 ... size of 1/(before + j) and (j - 1)/(before + j)."""
    reciprocals, others = Decimal(0), Decimal(0)
    for place in range(1, size + 1):
        reciprocals += Decimal(1) / (before + place)
        others += Decimal(place - 1) / (before + place)
    return reciprocals, others


def _decimal_sum(size: int, found: int, hits: int, reciprocals: Decimal, others: Decimal) -> Decimal:
    share = Decimal(found) / max(size, 1)
    return share * ((hits + 1) * reciprocals + others * (found - 1) / max(size - 1, 1))
