"""When one of two attacks on the same samples is the stronger, and when that may be chance."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from sstune.attacks.audit.paired import FEWEST, Paired, largest, points

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
    stronger = 100 * (only_one - only_two) / len(pairs) > threshold and p < 0.05 / comparisons
    assert pair.beaten(threshold, comparisons) == stronger


def test_fewest_is_the_smallest_significant_number() -> None:
    assert binomtest(FEWEST, FEWEST).pvalue < 0.05 < binomtest(FEWEST - 1, FEWEST - 1).pvalue


def test_the_largest_of_several_is_one_that_is_significant_if_any_is() -> None:
    by_chance, sure = Paired(12, 3, 50, 100), Paired(8, 0, 50, 100)
    assert by_chance.difference > sure.difference
    assert largest({"a": by_chance, "b": sure}, 2.0) == ("b", sure, True)
    assert largest({"a": by_chance}, 2.0) == ("a", by_chance, True)
    several = {"a": by_chance, "b": Paired(5, 0, 50, 100), "c": Paired(0, 9, 50, 100)}
    assert largest(several, 2.0) == ("a", by_chance, False)  # p = 0.035 is not below 0.05 / 3


def test_points_are_percent() -> None:
    assert points(torch.tensor([True, False, False])) == pytest.approx(100 / 3, rel=1e-12)
