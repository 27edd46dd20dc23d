"""How much robustness an attack shows to be hidden: what it breaks of the samples that PGD leaves.

An attack that is no stronger than PGD breaks few samples that PGD leaves. Up to :data:`TOLERATED` points of
all samples are taken for the luck of a start; significantly more are robustness that PGD only seemed to find.
An attack may be made on some of the samples that PGD leaves only, and stands for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np

from sstune.schema.audit import SOUGHT, Status
from sstune.statistics import Floats, permutation_test

TOLERATED = 1.0  # points
POWER = 0.8
EVERYTHING = 100.0  # points
MOST_ADVISED = 10_000  # samples
LEVEL = 0.05
SUSPECT = 0.2  # level of a warning


class Hidden(Protocol):
    """What an attack breaks of the samples that PGD leaves."""

    @property
    def points(self) -> float:
        """The hidden robustness, in percentage points of all samples."""

    @property
    def p(self) -> float:
        """One-sided p of at most :data:`TOLERATED` points."""

    def finds(self, level: float) -> float:
        """The fewest points that are found at this level with probability :data:`POWER`, if the attack breaks
        every sample that is not robust; 100 if no number is."""

    def advice(self, level: float, key: str) -> str:
        """The sizes with which :data:`SOUGHT` points would be found; empty if they are.

        Args:
            key: that limits how many of the samples that PGD leaves are attacked.
        """


@dataclass(frozen=True)
class HiddenSamples:
    """Of a metric that counts samples.

    Args:
        n: samples in all.
        left: how many of them PGD leaves.
        tried: how many of these are attacked.
        broken: how many of these the attack breaks.
        tolerated: points of all samples that are no sign of anything.
    """

    n: int
    left: int
    tried: int
    broken: int
    tolerated: float = TOLERATED

    @property
    def points(self) -> float:
        return self._points(self.broken / self.tried) if self.tried else 0.0

    @property
    def p(self) -> float:
        return binomial_tail(self.broken, self.tried, self._share(self.tolerated))

    def finds(self, level: float) -> float:
        if self.left <= self.n * SOUGHT / 100:  # more than is left cannot be hidden
            return self._points(1.0)
        least = fewest(self.tried, self._share(self.tolerated), level)
        share = share_found(least, self.tried)
        return EVERYTHING if share is None else self._points(share)

    def advice(self, level: float, key: str) -> str:
        if self.finds(level) <= SOUGHT:
            return ""
        said = f"too few samples to find {SOUGHT:g} points, "
        tried = samples_needed(self.n, self.left, self.left, level)
        if tried > self.tried and HiddenSamples(self.n, self.left, tried, 0).finds(level) <= SOUGHT:
            return f"{said}{key}={tried} would do"
        for n in range(self.n, MOST_ADVISED, 10):
            left = round(self.left * n / self.n)
            if HiddenSamples(n, left, left, 0).finds(level) <= SOUGHT:
                tried = samples_needed(n, left, left, level)
                more = f" with {key}={tried}" if key != "attack.n" and tried > self.tried else ""
                return f"{said}attack.n={n}{more} would do"
        return f"{said}attack.n={MOST_ADVISED} would not do"

    def _points(self, share: float) -> float:
        """A share of the samples that PGD leaves, in points of all samples."""
        return 100 * share * self.left / self.n

    def _share(self, points: float) -> float:
        """The inverse of :meth:`_points`, at most 1."""
        return min(1.0, points / 100 * self.n / self.left) if self.left else 1.0


@dataclass(frozen=True, eq=False)
class HiddenValues:
    """Of a metric with a value in [0,1] for each sample.

    Args:
        differences: (n,) what PGD leaves of each sample less what the other attack leaves.
    """

    differences: Floats

    @property
    def points(self) -> float:
        return 100 * float(self.differences.mean())

    @cached_property
    def p(self) -> float:
        above = self.differences - TOLERATED / 100
        return permutation_test(above) / 2 if above.mean() > 0 else 1.0

    def finds(self, level: float) -> float:
        """Of differences that are 0 or 1, which vary most."""
        n = len(self.differences)
        share = share_found(_fewest_of_values(n, level), n)
        return EVERYTHING if share is None else 100 * share

    def advice(self, level: float, key: str) -> str:
        return "" if self.finds(level) <= SOUGHT else f"too few samples to find {SOUGHT:g} points: more {key}"


def judged(found: Iterable[Hidden]) -> tuple[int, Status]:
    """The position of the most serious of several results, which share the level (Bonferroni), and its
    status: masked, or a warning at the level :data:`SUSPECT`."""
    results = list(found)
    order = [Status.ok, Status.warn, Status.masked]

    def status(hidden: Hidden) -> Status:
        if hidden.points <= TOLERATED:
            return Status.ok
        for level, meaning in ((LEVEL, Status.masked), (SUSPECT, Status.warn)):
            if hidden.p <= level / len(results):
                return meaning
        return Status.ok

    all_ = [status(hidden) for hidden in results]
    worst = max(range(len(results)), key=lambda at: (order.index(all_[at]), results[at].points))
    return worst, all_[worst]


def samples_needed(n: int, left: int, most: int, level: float) -> int:
    """How many of the ``left`` samples to attack so that :data:`SOUGHT` points are found; ``left`` or
    ``most`` if fewer do not suffice."""
    for tried in range(1, min(left, most) + 1):
        if HiddenSamples(n, left, tried, 0).finds(level) <= SOUGHT:
            return tried
    return min(left, most)


@lru_cache(maxsize=1000)
def _fewest_of_values(n: int, level: float) -> int:
    """The fewest differences of 1 among n, the others 0, whose p is at most ``level``; n + 1 if no number
    is."""
    ones = (HiddenValues((np.arange(n) < k).astype(np.float64)) for k in range(n + 1))
    return next((k for k, hidden in enumerate(ones) if hidden.p <= level), n + 1)


def share_found(least: int, n: int) -> float | None:
    """The share of n samples of which, with probability :data:`POWER`, ``least`` or more are found; None if
    there is none."""
    if least > n:
        return None
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if binomial_tail(least, n, middle) >= POWER else (middle, high)
    return high


@lru_cache(maxsize=10_000)
def fewest(n: int, share: float, level: float) -> int:
    """The fewest successes of n, each of probability ``share``, whose p is at most ``level``; n + 1 if no
    number is."""
    return next((k for k in range(1, n + 1) if binomial_tail(k, n, share) <= level), n + 1)


@lru_cache(maxsize=100_000)
def binomial_tail(k: int, n: int, share: float) -> float:
    """The probability of k successes or more of n, each of probability ``share``."""
    if k <= 0:
        return 1.0
    if share >= 1:
        return float(k <= n)
    if share <= 0:
        return 0.0
    at = np.arange(k, n + 1)
    ways = math.lgamma(n + 1) - _log_factorials(n)[at] - _log_factorials(n)[n - at]
    return min(1.0, float(np.exp(ways + at * math.log(share) + (n - at) * math.log1p(-share)).sum()))


@lru_cache(maxsize=64)
def _log_factorials(n: int) -> Floats:
    return np.array([math.lgamma(k + 1) for k in range(n + 1)])
