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
    DRAWS,
    Pairing,
    bootstrap_interval,
    bootstrap_test,
    difference_interval,
    mcnemar,
    percentile_interval,
    permutation_test,
    resampled_means,
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


class TestResampledMeans:
    def test_its_interval_is_scipys_bootstrap(self) -> None:
        values = np.random.default_rng(0).beta(0.5, 0.5, 60)
        expected = stats.bootstrap(
            (values,), np.mean, n_resamples=40_000, method="percentile", rng=np.random.default_rng(1)
        ).confidence_interval
        half = (expected.high - expected.low) / 2
        found = percentile_interval(resampled_means(values))
        assert found == pytest.approx((expected.low, expected.high), abs=0.05 * half)

    def test_of_three_values_all_resamples_by_enumeration(self) -> None:
        values = np.array([0.0, 0.25, 1.0])
        means = resampled_means(values)
        expected = [np.mean(drawn) for drawn in itertools.product(values, repeat=3)]
        assert len(means) == DRAWS
        for mean in set(expected):
            share = expected.count(mean) / len(expected)
            assert np.isclose(means, mean).mean() == pytest.approx(share, abs=0.015)

    def test_all_values_of_as_many_samples_have_the_same_resamples(self) -> None:
        a, b = np.random.default_rng(2).random((2, 30))
        assert resampled_means(a) - resampled_means(b) == pytest.approx(resampled_means(a - b), abs=1e-12)

    def test_the_interval_covers_19_times_in_20(self) -> None:
        generator, covered = np.random.default_rng(3), 0
        for _ in range(300):
            low, high = percentile_interval(resampled_means(generator.beta(2, 1, 100)))
            covered += low <= 2 / 3 <= high
        assert covered / 300 == pytest.approx(0.95, abs=0.04)

    def test_equal_values_have_no_width(self) -> None:
        assert percentile_interval(resampled_means(np.full(9, 0.5))) == (0.5, 0.5)


class TestBootstrapTest:
    def test_is_scipys_shares_of_resamples(self) -> None:
        a, b = np.random.default_rng(4).beta(2, 2, (2, 50))
        drawn = stats.bootstrap(
            (a - b,), np.mean, n_resamples=40_000, method="percentile", rng=np.random.default_rng(5)
        ).bootstrap_distribution
        expected = 2 * min((drawn <= 0).mean(), (drawn >= 0).mean())
        assert bootstrap_test(resampled_means(a) - resampled_means(b)) == pytest.approx(expected, abs=0.02)

    @pytest.mark.parametrize("shift", np.linspace(-0.1, 0.1, 21))
    def test_agrees_with_the_interval(self, shift: float) -> None:
        means = resampled_means(np.random.default_rng(6).normal(shift, 0.2, 40))
        low, high = percentile_interval(means)
        assert (bootstrap_test(means) < 0.05) == (low > 0 or high < 0)

    def test_is_near_students_for_many_samples(self) -> None:
        differences = np.random.default_rng(7).normal(0.02, 0.1, 200)
        expected = stats.ttest_1samp(differences, 0).pvalue
        assert bootstrap_test(resampled_means(differences)) == pytest.approx(expected, abs=0.01)

    def test_its_extremes(self) -> None:
        assert bootstrap_test(resampled_means(np.zeros(20))) == 1
        assert bootstrap_test(resampled_means(np.full(20, 0.1))) == 2 / (DRAWS + 1)

    def test_knows_no_order(self) -> None:
        means = resampled_means(np.random.default_rng(8).normal(0.03, 0.1, 30))
        assert bootstrap_test(means) == bootstrap_test(-means)


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
