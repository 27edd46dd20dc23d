"""Intervals of accuracies, and comparisons of two attacks on the same samples. Standard library only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Z = NormalDist().inv_cdf(0.975)  # for 95 %


def wilson(correct: float, n: int) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927), both ends in [0, 1].

    Args:
        correct: how many of ``n``; may be a mean over networks that were measured on the same n samples.

    Raises:
        ValueError: not 0 <= correct <= n, or n is 0.
    """
    if not 0 <= correct <= n or n == 0:
        raise ValueError(f"{correct} of {n} is no proportion")
    p, weight = correct / n, Z**2 / n
    centre = (p + weight / 2) / (1 + weight)
    half = math.sqrt(p * (1 - p) * weight + weight**2 / 4) / (1 + weight)
    # none and all reach the ends exactly, which rounding would miss
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == n else min(1.0, centre + half)
    return low, high


@dataclass(frozen=True)
class Pairing:
    """What became of the same n samples in two ways, A and B; the four counts add up to n."""

    both: int
    only_a: int
    only_b: int
    neither: int

    @classmethod
    def of(cls, a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> Pairing:
        """From (n,) bool each, in the same order of samples.

        Raises:
            ValueError: they are not of one length.
        """
        if a.shape != b.shape:
            raise ValueError(f"{len(a)} and {len(b)} samples cannot be paired")
        counts = (a & b, a & ~b, ~a & b, ~a & ~b)
        return cls(*(int(flags.sum()) for flags in counts))

    @property
    def n(self) -> int:
        """Samples."""
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def difference(self) -> float:
        """Accuracy of A less that of B, in [-1, 1]."""
        return (self.only_a - self.only_b) / self.n

    @property
    def percent_a(self) -> float:
        """Accuracy of A, in percent."""
        return 100 * (self.both + self.only_a) / self.n

    @property
    def percent_b(self) -> float:
        """Accuracy of B, in percent."""
        return self.percent_a - self.points

    @property
    def points(self) -> float:
        """Accuracy of A less that of B, in percentage points."""
        return 100 * (self.only_a - self.only_b) / self.n


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact p of as unequal a split, were both ways equally likely to be the only right one.

    The binomial form of McNemar's test (1947): samples on which both ways agree say nothing. 1 where there
    are no others. Not corrected for the number of comparisons.
    """
    n, fewer = only_a + only_b, min(only_a, only_b)
    term = total = 1  # exact integers: binomial coefficients outgrow any float
    for k in range(fewer):
        term = term * (n - k) // (k + 1)
        total += term
    return min(1.0, 2 * total / 2**n)


def difference_interval(only_a: float, only_b: float, n: int) -> tuple[float, float]:
    """95 % interval of the difference of two accuracies on the same ``n`` samples, both ends in [-1, 1].

    Bonett & Price (2012): Wald's interval once a sample is added to each of the two disagreements. Counts may
    be means over networks that were measured on the same samples.
    """
    a, b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    half = Z * math.sqrt((a + b - (a - b) ** 2) / (n + 2))
    return max(-1.0, a - b - half), min(1.0, a - b + half)
