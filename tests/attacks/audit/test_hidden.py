"""Hidden robustness: its test, its power and how many samples it takes, against exact rational arithmetic."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sstune.attacks.audit.hidden import (
    HiddenSamples,
    HiddenValues,
    binomial_tail,
    fewest,
    judged,
    samples_needed,
)
from sstune.schema.audit import Status

LEVELS = [0.2, 0.05, 0.05 / 3, 0.05 / 8]


def tail(k: int, n: int, share: Fraction) -> Fraction:
    """Of k successes or more."""
    return sum(
        (math.comb(n, j) * share**j * (1 - share) ** (n - j) for j in range(max(k, 0), n + 1)), Fraction(0)
    )


def tolerated(n: int, left: int) -> Fraction:
    """The share of what PGD leaves that is one point of all."""
    return min(Fraction(1), Fraction(n, 100 * left))


@st.composite
def attacked(draw: st.DrawFn) -> tuple[int, int, int]:
    """Samples in all, those left by PGD, and those attacked."""
    n = draw(st.integers(1, 400))
    left = draw(st.integers(1, n))
    return n, left, draw(st.integers(1, min(left, 50)))


@given(st.integers(0, 80), st.integers(0, 80), st.fractions(0, 1, max_denominator=1000))
def test_the_tail_is_that_of_a_binomial(k: int, n: int, share: Fraction) -> None:
    expected = float(tail(k, n, share)) if k else 1.0
    assert binomial_tail(k, n, float(share)) == pytest.approx(expected, rel=1e-10, abs=1e-300)


@given(attacked(), st.integers(0, 50))
def test_points_and_p_are_those_of_all_samples(of: tuple[int, int, int], broken: int) -> None:
    n, left, tried = of
    assume(broken <= tried)
    hidden = HiddenSamples(n, left, tried, broken)
    assert hidden.points == pytest.approx(float(Fraction(100 * broken * left, tried * n)))
    assert hidden.p == pytest.approx(float(tail(broken, tried, tolerated(n, left))), rel=1e-9)


@given(attacked(), st.sampled_from(LEVELS))
def test_what_is_found_is_what_a_scan_over_shares_finds(of: tuple[int, int, int], level: float) -> None:
    n, left, tried = of
    null = tolerated(n, left)
    tails = [tail(k, tried, null) for k in range(tried + 1)]
    assume(all(abs(each - Fraction(level)) > 1e-12 for each in tails))
    least = next((k for k in range(1, tried + 1) if tails[k] <= level), None)
    assert fewest(tried, float(null), level) == (tried + 1 if least is None else least)
    found = HiddenSamples(n, left, tried, 0).finds(level)
    if left <= n / 20:  # 5 points cannot be hidden
        assert found == pytest.approx(100 * left / n)
        return
    if least is None:
        assert found == 100
        return
    share = next(number for number in range(101) if tail(least, tried, Fraction(number, 100)) >= 0.8)
    assert share - 1 <= found * n / left <= share + 1e-6


@given(attacked(), st.sampled_from(LEVELS), st.integers(1, 50))
def test_no_fewer_samples_would_do(of: tuple[int, int, int], level: float, most: int) -> None:
    n, left, _ = of
    enough = [
        tried <= min(left, most) and HiddenSamples(n, left, tried, 0).finds(level) <= 5
        for tried in range(1, min(left, most) + 1)
    ]
    expected = enough.index(True) + 1 if any(enough) else min(left, most)
    assert samples_needed(n, left, most, level) == expected


def test_how_many_samples_it_takes() -> None:
    """Of 200 samples of which 100 are left, 5 points are a tenth of these, 1 is a 50th."""
    needed = samples_needed(200, 100, 100, 0.05)
    for tried, enough in ((needed - 1, False), (needed, True)):
        least = next(k for k in range(1, tried + 1) if tail(k, tried, Fraction(1, 50)) <= 0.05)
        assert (tail(least, tried, Fraction(1, 10)) >= 0.8) is enough
    few = HiddenSamples(200, 100, 20, 0)
    assert few.advice(0.05, "audit.label_n") == (
        f"too few samples to find 5 points, audit.label_n={needed} would do"
    )
    assert HiddenSamples(200, 100, needed, 0).advice(0.05, "audit.label_n") == ""


def test_if_all_are_too_few_more_samples_are_asked_for() -> None:
    """Half of them left, as now."""
    few = HiddenSamples(60, 30, 30, 0)
    assert samples_needed(60, 30, 30, 0.05) == 30
    assert few.finds(0.05) > 5
    advice = few.advice(0.05, "audit.label_n")
    assert advice.endswith(" would do")
    n = int(advice.split("attack.n=")[1].split()[0])
    assert HiddenSamples(n, n // 2, n // 2, 0).finds(0.05) <= 5
    assert HiddenSamples(n - 10, n // 2 - 5, n // 2 - 5, 0).finds(0.05) > 5


@given(attacked(), st.integers(1, 6))
def test_one_point_by_luck_is_masked_no_more_often_than_the_level(
    of: tuple[int, int, int], results: int
) -> None:
    """By enumeration; the other results break nothing."""
    n, left, tried = of
    share = tolerated(n, left)
    alarms = Fraction(0)
    for broken in range(tried + 1):
        found = [HiddenSamples(n, left, tried, broken), *[HiddenSamples(n, left, tried, 0)] * (results - 1)]
        if judged(found)[1] is Status.masked:
            alarms += math.comb(tried, broken) * share**broken * (1 - share) ** (tried - broken)
    assert alarms <= Fraction(5, 100) / results + Fraction(1, 10**9)


@pytest.mark.parametrize(("left", "tried"), [*itertools.product([100, 300, 1000], [20, 60, 100])])
def test_nor_where_ten_of_a_thousand_samples_are_hidden_and_some_are_drawn(left: int, tried: int) -> None:
    """Without replacement, as samples are."""
    alarms = sum(
        Fraction(math.comb(10, broken) * math.comb(left - 10, tried - broken), math.comb(left, tried))
        for broken in range(11)
        if judged([HiddenSamples(1000, left, tried, broken)])[1] is Status.masked
    )
    assert alarms <= 0.05


class TestJudged:
    @pytest.mark.parametrize(
        ("broken", "expected"),
        [
            ([1], (0, "ok")),  # of 100; a point is tolerated
            ([2], (0, "ok")),  # p = 0.264
            ([3], (0, "warn")),  # 0.079
            ([4], (0, "masked")),  # 0.018
            ([3, 0], (0, "warn")),
            ([0, 3, 0], (1, "ok")),  # 0.079 > 0.2 / 3
            ([4, 0], (0, "masked")),
            ([0, 0, 4], (2, "warn")),  # 0.018 > 0.05 / 3
            ([0, 0, 5], (2, "masked")),  # 0.0034
            ([2, 2], (0, "ok")),
        ],
    )
    def test_several_results_share_the_level(self, broken: list[int], expected: tuple[int, str]) -> None:
        assert judged(HiddenSamples(100, 100, 100, each) for each in broken) == expected

    def test_a_sure_result_counts_before_a_larger_one(self) -> None:
        few, many = HiddenSamples(100, 100, 5, 1), HiddenSamples(1000, 1000, 1000, 40)
        assert few.points > many.points
        assert judged([few, many]) == (1, "masked")
        assert judged([HiddenSamples(100, 1, 1, 1)] * 2) == (0, "ok")  # one point, however surely

    def test_nothing_left_is_nothing_hidden(self) -> None:
        nothing = HiddenSamples(100, 0, 0, 0)
        assert (nothing.points, nothing.p, judged([nothing])) == (0, 1, (0, "ok"))


class TestOfValues:
    def test_points_are_the_mean(self) -> None:
        values = np.array([0.0, 0.1, 0.5, 0.2])
        assert HiddenValues(values).points == pytest.approx(20)

    @given(st.lists(st.integers(-100, 100), min_size=1, max_size=12))
    def test_p_is_that_of_all_signs_of_what_is_above_a_point(self, percent: list[int]) -> None:
        """Whole points, summed as integers."""
        above = [value - 1 for value in percent]
        total = sum(above)
        signs = itertools.product((-1, 1), repeat=sum(value != 0 for value in above))
        sums = [sum(s * a for s, a in zip(sign, filter(None, above), strict=True)) for sign in signs]
        two_sided = Fraction(sum(abs(each) >= total for each in sums), len(sums))
        expected = float(two_sided / 2) if total > 0 else 1.0
        assert HiddenValues(np.array(percent) / 100).p == pytest.approx(expected)

    def test_more_of_it_is_masked(self) -> None:
        def of(points: float) -> Status:
            return judged([HiddenValues(np.full(40, points / 100))])[1]

        assert [of(points) for points in (0, 1, 1.5, 20)] == ["ok", "ok", "masked", "masked"]
        alone = HiddenValues(np.where(np.arange(40) < 1, 1.0, 0.0))
        assert (alone.points, judged([alone])[1]) == (2.5, "ok")  # one query is no evidence
