"""Intervals and tests for counts of samples."""

from __future__ import annotations

import math

Z = 1.959963984540054  # of a two-sided 95 % interval


def wilson(correct: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share, in [0, 1] (Wilson 1927)."""
    share, z2 = correct / n, Z * Z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided p of the exact test that neither of two paired shares is larger (McNemar 1947)."""
    n, less = only_a + only_b, min(only_a, only_b)
    ways = tail = 1  # whole numbers: binomial coefficients outgrow any float
    for k in range(less):
        ways = ways * (n - k) // (k + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**n)
