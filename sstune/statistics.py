"""Intervals of a metric, and comparisons of two attacks on the same samples. Imports no torch and no scipy.

Counts of correct samples: :func:`wilson`, :func:`mcnemar`, :func:`difference_interval`. A value for each
sample: :func:`resampled_means` with :func:`percentile_interval` and :func:`bootstrap_test`. A value for a set
only: :func:`bootstrap_interval`. :class:`Pairing` and :class:`PairedValues` compare two methods by counts
and by values.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Z = NormalDist().inv_cdf(0.975)  # for 95 %
DRAWS = 10_000  # resamples of a mean
ROUNDING = 1e-12  # of differences of means in [0, 1]
_BLOCK = 500  # resamples that are multiplied at a time, in float64

ENUMERATED = 14  # most differences for which all signs are enumerated

Floats = npt.NDArray[np.float64]


def wilson(correct: float, n: int) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927), both ends in [0, 1].

    Args:
        correct: number of ``n``; may be a mean over networks measured on the same n samples.

    Raises:
        ValueError: not 0 <= correct <= n, or n is 0.
    """
    if not 0 <= correct <= n or n == 0:
        raise ValueError(f"{correct} of {n} is no proportion")
    p, weight = correct / n, Z**2 / n
    centre = (p + weight / 2) / (1 + weight)
    half = math.sqrt(p * (1 - p) * weight + weight**2 / 4) / (1 + weight)
    # exact at 0 and n, despite rounding
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == n else min(1.0, centre + half)
    return low, high


@dataclass(frozen=True)
class Pairing:
    """Contingency table of two methods, A and B, on the same n samples; the four counts sum to n."""

    both: int
    only_a: int
    only_b: int
    neither: int

    @classmethod
    def of(cls, a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> Pairing:
        """From (n,) bool each, in the same order of samples.

        Raises:
            ValueError: their lengths differ.
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
        """Accuracy of A minus that of B, in [-1, 1]."""
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
        """Accuracy of A minus that of B, in percentage points."""
        return 100 * (self.only_a - self.only_b) / self.n

    @property
    def p(self) -> float:
        """Of :func:`mcnemar`."""
        return mcnemar(self.only_a, self.only_b)

    @property
    def z(self) -> float:
        """The difference in standard errors of a difference that is none; 0 if there is none."""
        unequal = self.only_a + self.only_b
        return (self.only_a - self.only_b) / math.sqrt(unequal) if unequal else 0.0


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided p of McNemar's exact (binomial) test (1947) of two methods on the same samples.

    Args:
        only_a: number of samples on which only A is correct.
        only_b: number of samples on which only B is correct.

    Samples on which both agree do not count; p is 1 if there are no others. Not corrected for multiple
    comparisons.
    """
    n, fewer = only_a + only_b, min(only_a, only_b)
    term = total = 1  # exact integers: binomial coefficients outgrow any float
    for k in range(fewer):
        term = term * (n - k) // (k + 1)
        total += term
    return min(1.0, 2 * total / 2**n)


def difference_interval(only_a: float, only_b: float, n: int) -> tuple[float, float]:
    """95 % interval of the difference of two accuracies on the same ``n`` samples, both ends in [-1, 1].

    Bonett & Price (2012): Wald's interval after adding one to both counts. Counts may be means over networks
    measured on the same samples.
    """
    a, b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    half = Z * math.sqrt((a + b - (a - b) ** 2) / (n + 2))
    return max(-1.0, a - b - half), min(1.0, a - b + half)


def resampled_means(values: Floats) -> Floats:
    """(10,000,) means of bootstrap resamples (Efron 1979) of (n,) values.

    Every call with n values uses the same resamples. Means of other values of the same samples may therefore
    be subtracted or averaged: the result is the bootstrap of the paired differences, or of the averages.
    """
    counts, values = _resamples(len(values)), np.asarray(values, dtype=np.float64)
    blocks = [counts[start : start + _BLOCK] @ values for start in range(0, DRAWS, _BLOCK)]
    return np.concatenate(blocks) / len(values)


@lru_cache(maxsize=4)
def _resamples(n: int) -> npt.NDArray[np.uint8]:
    """(10,000, n), how often each of n samples is in each resample; the same on every machine."""
    stream = np.random.RandomState(0)
    counts = np.empty((DRAWS, n), np.uint8)
    for row in counts:
        row[:] = np.bincount(stream.randint(0, n, n), minlength=n)
    return counts


def percentile_interval(means: Floats) -> tuple[float, float]:
    """95 % percentile interval of resampled means, or of their differences."""
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def mean_interval(values: Floats) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of (n,) values."""
    return percentile_interval(resampled_means(values))


def bootstrap_test(differences: Floats) -> float:
    """Two-sided p of no difference, from resampled means of paired differences.

    Twice the share of resamples on the other side of 0, where one is added to both numbers, so that p is at
    least 0.0002. It is below 0.05 where :func:`percentile_interval` is on one side of 0 (but for a single
    resample); 1 if all differences are 0. Not corrected for multiple comparisons.
    """
    below = int((differences <= ROUNDING).sum())
    above = int((differences >= -ROUNDING).sum())
    return min(1.0, 2 * (1 + min(below, above)) / (len(differences) + 1))


def permutation_test(differences: Floats) -> float:
    """Two-sided p of a sign-flip permutation test (Fisher 1935) of the mean of (n,) paired differences.

    All signs are enumerated for at most 14 non-zero differences; beyond that, a normal approximation is used.
    1 if all differences are 0. Not corrected for multiple comparisons. With few samples it is more cautious
    than a bootstrap, which knows only the values that were drawn.
    """
    found = differences[differences != 0]
    if len(found) == 0:
        return 1.0
    total = abs(float(found.sum()))
    rounding = 1e-9 * float(np.abs(found).sum())
    if len(found) > ENUMERATED:
        return math.erfc(total / math.sqrt(2 * float((found**2).sum())))
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(found))))
    # equal sums may differ by rounding
    return float((np.abs(signs @ found) >= total - rounding).mean())


@dataclass(frozen=True, eq=False)
class PairedValues:
    """A metric in [0, 1] of two methods, A and B, on the same n samples, (n,) each."""

    a: Floats
    b: Floats

    def __post_init__(self) -> None:
        if self.a.shape != self.b.shape:
            raise ValueError(f"{len(self.a)} and {len(self.b)} samples cannot be paired")

    @property
    def percent_a(self) -> float:
        """Mean of A, in percent."""
        return 100 * float(self.a.mean())

    @property
    def percent_b(self) -> float:
        """Mean of B, in percent."""
        return 100 * float(self.b.mean())

    @property
    def points(self) -> float:
        """Mean of A minus that of B, in percentage points."""
        return 100 * float((self.a - self.b).mean())

    @property
    def p(self) -> float:
        """Of :func:`permutation_test`."""
        return permutation_test(self.a - self.b)

    @property
    def z(self) -> float:
        """The difference in standard errors of a difference that is none; 0 if there is none."""
        difference = self.a - self.b
        spread = math.sqrt(float((difference**2).sum()))
        return float(difference.sum()) / spread if spread else 0.0


def bootstrap_interval(
    score: Callable[[npt.NDArray[np.int64]], float], n: int, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval (Efron 1979) of a metric that is defined for a set of samples only.

    Args:
        score: the metric of the samples with these (n,) indices, which may repeat.
        n: number of samples.
        draws: number of resamples.
        seed: seed of the resamples.
    """
    generator = np.random.default_rng(seed)
    scores = [score(generator.integers(0, n, n)) for _ in range(draws)]
    low, high = np.quantile(scores, [0.025, 0.975])
    return float(low), float(high)
