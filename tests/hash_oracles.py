"""Hashing written out in plain Python for one query: losses of attacks, codes, and average precision.

The losses take complex numbers, so that a step into the imaginary axis differentiates them to rounding
(Squire & Trapp 1998). Masks and weights look at real parts only.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

Row = Sequence[complex]
Code = Sequence[int]
TABLE = [0.1, 0.1, 0.1, 0.1, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0]


def continuation(step: int, steps: int) -> float:
    """The factor a at a step (0-based) of an attack, by its tenth."""
    return TABLE[10 * step // steps]


def gradient(function: Callable[[list[complex]], complex], at: Sequence[float]) -> list[float]:
    """The derivative with respect to each number of ``at``."""
    tiny = 1e-30
    found = []
    for position in range(len(at)):
        moved: list[complex] = [complex(value) for value in at]
        moved[position] += tiny * 1j
        found.append(function(moved).imag / tiny)
    return found


def sign(x: complex) -> int:
    return 1 if complex(x).real >= 0 else -1


def code(outputs: Row) -> list[int]:
    return [sign(x) for x in outputs]


def squashed(outputs: Row, a: float = 1.0) -> list[complex]:
    return [cmath.tanh(a * x) for x in outputs]


def hag(outputs: Row, clean: Row, a: float) -> complex:
    """To be decreased; ``clean``, the outputs for the query as it is."""
    inner, summed, n = 0j, 0j, 0
    for h, own in zip(squashed(outputs, a), squashed(clean), strict=True):
        if abs(h.real - sign(own)) <= 1.5:
            inner, summed, n = inner + h * own, summed + h, n + 1
    return (inner / (n + 1e-8) + 1) ** 2 + (summed / len(outputs)) ** 2


def sdha(outputs: Row, relevant: Sequence[Code], a: float) -> complex:
    """The weighted distance, to be increased; ``relevant``, one code for each relevant item."""
    total = 0j
    for other in relevant:
        differing = sum(sign(x) != r for x, r in zip(outputs, other, strict=True))
        distance = 0j
        for h, r in zip(squashed(outputs, a), other, strict=True):
            v = h * r
            gate = 1 / (1 + cmath.exp(-5 * v))
            distance += 0.5 * (1 - v) * gate + (1 - gate)
        total += distance / cmath.sqrt(differing + 1e-8)
    return total / len(relevant)


def mainstay(outputs: Row, reference: Code, a: float) -> complex:
    """To be decreased."""
    kept = [h * c for h, c in zip(squashed(outputs, a), reference, strict=True) if (h * c).real > -0.5]
    return sum(((v + 2) * v for v in kept), 0j) / max(len(kept), 1)


def logits(outputs: Row, reference: Code) -> complex:
    """To be decreased."""
    return sum((f * c for f, c in zip(outputs, reference, strict=True)), 0j)


def mainstay_code(relevant: Sequence[bool], codes: Sequence[Code]) -> list[int]:
    """The sign of the mean of the relevant codes minus the mean of the others, in exact fractions."""

    def mean(bit: int, wanted: bool) -> Fraction:
        chosen = [
            other[bit] for other, is_relevant in zip(codes, relevant, strict=True) if is_relevant == wanted
        ]
        return Fraction(sum(chosen), len(chosen)) if chosen else Fraction(0)

    return [1 if mean(bit, True) >= mean(bit, False) else -1 for bit in range(len(codes[0]))]


def related(target: Sequence[float] | float, other: Sequence[float] | float) -> bool:
    """Whether two images are of one class, or share a label."""
    if isinstance(target, Sequence) and isinstance(other, Sequence):
        return any(x and y for x, y in zip(target, other, strict=True))
    return target == other


def hamming(one: Code, other: Code) -> int:
    return sum(x != y for x, y in zip(one, other, strict=True))


def average_precision(distances: Sequence[int], relevant: Sequence[bool], top: int | None = None) -> float:
    """Expected AP@K over all orders of items at equal distances.

    Position by position, for each number of hits that may stand in the part of a group above K.
    """
    left = len(distances) if top is None else min(top, len(distances))
    before, hits, summed = 0, 0, 0.0
    for distance in sorted(set(distances)):
        group = [hit for d, hit in zip(distances, relevant, strict=True) if d == distance]
        inside, found = min(left, len(group)), sum(group)
        if inside == 0:
            break
        if inside < len(group):
            return _cut(before, hits, summed, (len(group), found, inside))
        summed += _sum_of_group(before, hits, len(group), found)
        before, hits, left = before + len(group), hits + found, left - len(group)
    return summed / hits if hits else 0.0


def _cut(before: int, hits: int, summed: float, group: tuple[int, int, int]) -> float:
    size, found, inside = group
    total = 0.0
    for drawn in range(max(0, inside - (size - found)), min(found, inside) + 1):
        ways = math.comb(found, drawn) * math.comb(size - found, inside - drawn)
        if hits + drawn:
            value = (summed + _sum_of_group(before, hits, inside, drawn)) / (hits + drawn)
            total += ways / math.comb(size, inside) * value
    return total


def _sum_of_group(before: int, hits: int, size: int, found: int) -> float:
    """Expected sum of the precisions at the hits of a group, of which any order is as likely."""
    if found == 0:
        return 0.0
    others = (found - 1) / (size - 1) if size > 1 else 0.0  # hits at each earlier place
    places = range(1, size + 1)
    terms = ((hits + 1 + (place - 1) * others) / (before + place) for place in places)
    return found / size * math.fsum(terms)


def ap_of(
    query: Row,
    target: Sequence[float] | float,
    database: Sequence[Code],
    targets: Sequence[Sequence[float]] | Sequence[float],
    top: int | None = None,
) -> float:
    """Expected AP@K of a query with these outputs."""
    distances = [hamming(code(query), other) for other in database]
    return average_precision(distances, [related(target, other) for other in targets], top)
