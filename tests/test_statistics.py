"""Against scipy, high precision and the definitions."""

from __future__ import annotations

from itertools import product

import mpmath
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from sstune.statistics import mcnemar, wilson


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_wilsons_ends_are_1_96_of_their_own_standard_errors_away(n: int, share: float) -> None:
    correct = round(share * n)
    with mpmath.workdps(40):
        z = mpmath.sqrt(2) * mpmath.erfinv(mpmath.mpf("0.95"))
        found = mpmath.mpf(correct) / n
        for end in wilson(correct, n):
            assert 0 <= end <= 1
            p = mpmath.mpf(end)
            assert abs(abs(found - p) - z * mpmath.sqrt(p * (1 - p) / n)) < 1e-6


@given(st.integers(1, 3000), st.data())
def test_wilson_is_scipys(n: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, n))
    expected = binomtest(correct, n).proportion_ci(method="wilson")
    assert wilson(correct, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(st.integers(0, 2000), st.integers(0, 2000))
def test_mcnemar_is_scipys_binomial_test(only_a: int, only_b: int) -> None:
    expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert mcnemar(only_a, only_b) == pytest.approx(expected, rel=1e-9, abs=1e-200)  # below, scipy has 0
    assert mcnemar(only_a, only_b) == mcnemar(only_b, only_a)


@pytest.mark.parametrize("n", range(1, 9))
def test_mcnemar_counts_the_outcomes_that_are_as_unequal(n: int) -> None:
    """Of all 2^n ways in which n coins may fall."""
    heads = [sum(coins) for coins in product([0, 1], repeat=n)]
    for only_a in range(n + 1):
        unequal = abs(2 * only_a - n)
        expected = sum(abs(2 * found - n) >= unequal for found in heads) / 2**n
        assert mcnemar(only_a, n - only_a) == pytest.approx(expected, rel=1e-12)


def test_no_pair_that_differs_says_nothing() -> None:
    assert mcnemar(0, 0) == 1.0
