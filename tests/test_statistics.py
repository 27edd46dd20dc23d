"""Intervals and tests against scipy, against their defining equations, and by enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.stats import binomtest

from sstune.statistics import (
    Pairing,
    bootstrap_interval,
    difference_interval,
    mcnemar,
    mean_interval,
    permutation_test,
    student_quantile,
    wilson,
)

Z = 1.959963984540054


@st.composite
def counts(draw: st.DrawFn) -> tuple[int, int]:
    n = draw(st.integers(1, 5000))
    return draw(st.integers(0, n)), n


class TestWilson:
    @given(counts())
    def test_is_scipys(self, pair: tuple[int, int]) -> None:
        correct, n = pair
        expected = binomtest(correct, n).proportion_ci(0.95, method="wilson")
        assert wilson(correct, n) == pytest.approx((expected.low, expected.high), abs=1e-12)

    @given(counts())
    def test_its_ends_are_where_the_score_test_rejects(self, pair: tuple[int, int]) -> None:
        correct, n = pair
        for end in wilson(correct, n):
            assert 0 <= end <= 1
            assert (correct / n - end) ** 2 == pytest.approx(Z**2 * end * (1 - end) / n, abs=1e-12)

    def test_none_and_all_reach_the_ends(self) -> None:
        assert wilson(0, 500)[0] == 0
        assert wilson(500, 500)[1] == 1

    def test_takes_a_mean_count(self) -> None:
        low, high = wilson(10.5, 100)
        assert wilson(10, 100)[0] < low < 0.105 < high < wilson(11, 100)[1]

    @pytest.mark.parametrize(("correct", "n"), [(0, 0), (-1, 5), (6, 5)])
    def test_refuses_what_is_no_proportion(self, correct: int, n: int) -> None:
        with pytest.raises(ValueError, match="no proportion"):
            wilson(correct, n)


class TestMcNemar:
    @given(st.integers(0, 300), st.integers(0, 300))
    def test_is_the_binomial_test(self, only_a: int, only_b: int) -> None:
        n = only_a + only_b
        expected = binomtest(only_a, n, 0.5).pvalue if n else 1.0
        assert mcnemar(only_a, only_b) == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize(("only_a", "only_b"), [(0, 6), (1, 8), (4, 4), (5, 4), (2, 9)])
    def test_counts_the_splits_that_are_as_unequal(self, only_a: int, only_b: int) -> None:
        n = only_a + only_b
        unequal = [
            abs(2 * sum(coins) - n) >= abs(only_a - only_b) for coins in itertools.product((0, 1), repeat=n)
        ]
        assert mcnemar(only_a, only_b) == sum(unequal) / 2**n

    def test_of_many_samples(self) -> None:
        assert mcnemar(10_000, 10_000) == 1
        assert mcnemar(9_800, 10_200) == pytest.approx(binomtest(9_800, 20_000).pvalue, rel=1e-6)
        assert 0 <= mcnemar(0, 50_000) < 1e-300


class TestPairing:
    @given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
    def test_counts_sample_by_sample(self, pairs: list[tuple[bool, bool]]) -> None:
        a, b = np.array(pairs).T
        expected = [
            pairs.count(pair) for pair in [(True, True), (True, False), (False, True), (False, False)]
        ]
        found = Pairing.of(a, b)
        assert [found.both, found.only_a, found.only_b, found.neither] == expected
        assert found.n == len(pairs)
        assert found.difference == pytest.approx(a.mean() - b.mean())

    def test_refuses_other_samples(self) -> None:
        with pytest.raises(ValueError, match="cannot be paired"):
            Pairing.of(np.ones(3, bool), np.ones(4, bool))


class TestDifference:
    @pytest.mark.parametrize("only_a", [0.01, 0.1, 0.4])
    @pytest.mark.parametrize("only_b", [0.0, 0.05, 0.3])
    def test_covers_the_truth_19_times_in_20(self, only_a: float, only_b: float) -> None:
        """The probability of every outcome of 40 samples whose interval holds the true difference."""
        n, covered = 40, 0.0
        for a in range(n + 1):
            for b in range(n + 1 - a):
                low, high = difference_interval(a, b, n)
                if low <= only_a - only_b <= high:
                    ways = math.comb(n, a) * math.comb(n - a, b)
                    covered += ways * only_a**a * only_b**b * (1 - only_a - only_b) ** (n - a - b)
        assert covered > 0.94

    @given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 400))
    def test_holds_the_difference_and_knows_no_order(self, only_a: int, only_b: int, others: int) -> None:
        n = only_a + only_b + others
        if n:
            low, high = difference_interval(only_a, only_b, n)
            assert -1 <= low <= (only_a - only_b) / n <= high <= 1
            assert difference_interval(only_b, only_a, n) == pytest.approx((-high, -low))

    def test_narrows_like_a_normal_one(self) -> None:
        low, high = difference_interval(30_000, 10_000, 100_000)
        assert (high + low) / 2 == pytest.approx(0.2, abs=1e-4)
        assert (high - low) / 2 == pytest.approx(Z * math.sqrt((0.4 - 0.2**2) / 100_000), rel=1e-3)


class TestMean:
    @pytest.mark.parametrize("degrees", [*range(1, 12), 29, 30, 99, 100, 9_999])
    def test_the_quantile_is_scipys(self, degrees: int) -> None:
        assert student_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-9)

    @given(st.lists(st.floats(0.4, 0.6), min_size=2, max_size=50))
    def test_is_students_interval(self, values: list[float]) -> None:
        if np.std(values) > 1e-3:
            expected = stats.ttest_1samp(values, 0).confidence_interval()
            low, high = max(0, expected.low), min(1, expected.high)
            assert mean_interval(np.array(values)) == pytest.approx((low, high), rel=1e-6)

    def test_is_cut_where_values_end(self) -> None:
        assert mean_interval(np.array([0.0, 1.0])) == (0, 1)
        assert mean_interval(np.array([-1.0, 1.0]), low=-1) == (-1, 1)

    def test_of_one_value_there_is_none(self) -> None:
        assert np.isnan(mean_interval(np.array([0.5]))).all()


class TestPermutation:
    @given(st.lists(st.integers(-20, 20), min_size=1, max_size=9))
    def test_counts_the_signs_that_are_as_unequal(self, differences: list[int]) -> None:
        """In whole numbers: sums of hundredths that are equal must not be told apart by rounding."""
        sums = [
            abs(sum(sign * difference for sign, difference in zip(signs, differences, strict=True)))
            for signs in itertools.product((-1, 1), repeat=len(differences))
        ]
        expected = np.mean([total >= abs(sum(differences)) for total in sums])
        assert permutation_test(np.array(differences) / 100) == pytest.approx(expected)

    def test_of_many_differences(self) -> None:
        differences = np.random.default_rng(0).normal(0.02, 0.1, 200)
        found = stats.permutation_test(
            (differences,), np.sum, permutation_type="samples", n_resamples=50_000, rng=1
        )
        assert permutation_test(differences) == pytest.approx(found.pvalue, abs=0.003)

    def test_of_signs_alone_it_is_mcnemars(self) -> None:
        differences = np.repeat([1.0, 0.0, -1.0], [9, 5, 2])
        assert permutation_test(differences) == pytest.approx(mcnemar(9, 2))

    def test_without_a_difference_nothing_is_unlikely(self) -> None:
        assert permutation_test(np.zeros(20)) == 1


class TestBootstrap:
    def test_of_a_mean_is_as_wide_as_its_normal_interval(self) -> None:
        values = np.random.default_rng(0).random(500)
        low, high = bootstrap_interval(lambda index: float(values[index].mean()), len(values), draws=4000)
        half = Z * values.std() / math.sqrt(500)
        assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=half / 10)

    def test_two_samples_by_enumeration(self) -> None:
        """The maximum of two is the smaller one in a quarter of all draws."""
        assert bootstrap_interval(lambda index: float(index.max()), 2, draws=200) == (0, 1)

    def test_the_same_seed_draws_the_same(self) -> None:
        def interval(seed: int) -> tuple[float, float]:
            return bootstrap_interval(lambda index: float(index.mean()), 50, draws=20, seed=seed)

        assert interval(3) == interval(3) != interval(4)
