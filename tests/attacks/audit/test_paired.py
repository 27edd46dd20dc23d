"""When one of two attacks on the same samples is the stronger, and when that may be chance."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from sstune.attacks.audit.paired import FEWEST, Paired, points, strongest

flags = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


@given(flags, st.integers(1, 6), st.sampled_from([0.0, 0.2, 2.0]))
def test_beaten_is_a_difference_above_the_threshold_that_a_binomial_test_confirms(
    pairs: list[tuple[bool, bool]], comparisons: int, threshold: float
) -> None:
    one, two = (torch.tensor(column) for column in zip(*pairs, strict=True))
    pair = Paired.of(one, two)
    only_one, only_two = pairs.count((True, False)), pairs.count((False, True))
    assert pair.first == pytest.approx(100 * sum(a for a, _ in pairs) / len(pairs))
    assert pair.second == pytest.approx(100 * sum(b for _, b in pairs) / len(pairs))
    assert pair.difference == pytest.approx(pair.first - pair.second)
    p = binomtest(only_one, only_one + only_two).pvalue if only_one + only_two else 1.0
    ahead = 100 * (only_one - only_two) / len(pairs) > threshold
    assert pair.beaten(threshold, 0.05 / comparisons) == (ahead and p < 0.05 / comparisons)
    expected = "masked" if p < 0.05 / comparisons else "warn" if p < 0.2 / comparisons else "ok"
    assert pair.judged(threshold, comparisons) == (expected if ahead else "ok")


def test_fewest_is_the_smallest_significant_number() -> None:
    assert binomtest(FEWEST, FEWEST).pvalue < 0.05 < binomtest(FEWEST - 1, FEWEST - 1).pvalue


def test_three_samples_are_no_reason_to_doubt() -> None:
    assert [Paired(k, 0, 50, 100).judged(0.2) for k in (0, 3, 4, 5, 6)] == [
        "ok",
        "ok",
        "warn",
        "warn",
        "masked",
    ]


def test_the_strongest_of_several_is_one_that_is_surely_so_if_any_is() -> None:
    seems, sure = Paired(12, 3, 50, 100), Paired(8, 0, 50, 100)
    assert seems.difference > sure.difference
    assert strongest({"a": seems, "b": sure}, 2.0) == ("b", sure, "masked")
    assert strongest({"a": seems}, 2.0) == ("a", seems, "masked")
    several = {"a": seems, "b": Paired(5, 0, 50, 100), "c": Paired(0, 9, 50, 100)}
    assert strongest(several, 2.0) == ("a", seems, "warn")  # p = 0.035 is not below 0.05 / 3
    chance = {"a": Paired(20, 12, 50, 100), "b": Paired(2, 2, 50, 100)}
    assert strongest(chance, 2.0) == ("a", chance["a"], "ok")


def test_points_are_percent() -> None:
    assert points(torch.tensor([True, False, False])) == pytest.approx(100 / 3, rel=1e-12)
