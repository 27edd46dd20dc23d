"""When one of two attacks on the same samples is the stronger, and when that may be chance."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from sstune.attacks.audit.comparison import (
    is_significantly_stronger,
    most_significant,
    pairing,
    percent,
    status,
)
from sstune.statistics import Pairing

flags = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


@given(flags, st.integers(1, 6), st.sampled_from([0.0, 0.2, 2.0]))
def test_stronger_is_a_difference_above_the_threshold_that_a_binomial_test_confirms(
    pairs: list[tuple[bool, bool]], comparisons: int, threshold: float
) -> None:
    one, two = (torch.tensor(column) for column in zip(*pairs, strict=True))
    pair = pairing(one, two)
    only_one, only_two = pairs.count((True, False)), pairs.count((False, True))
    assert pair.percent_a == pytest.approx(100 * sum(a for a, _ in pairs) / len(pairs))
    assert pair.percent_b == pytest.approx(100 * sum(b for _, b in pairs) / len(pairs))
    assert pair.points == pytest.approx(100 * pair.difference)
    p = binomtest(only_one, only_one + only_two).pvalue if only_one + only_two else 1.0
    ahead = 100 * (only_one - only_two) / len(pairs) > threshold
    level = 0.05 / comparisons
    assert is_significantly_stronger(pair, threshold, level) == (ahead and p < level)
    expected = "masked" if p < 0.05 / comparisons else "warn" if p < 0.2 / comparisons else "ok"
    assert status(pair, threshold, comparisons) == (expected if ahead else "ok")


def disagreeing(only_a: int, only_b: int, n: int = 100) -> Pairing:
    """A pairing of which only the disagreements matter."""
    return Pairing(0, only_a, only_b, n - only_a - only_b)


def test_three_samples_are_no_reason_to_doubt() -> None:
    assert [status(disagreeing(k, 0), 0.2) for k in (0, 3, 4, 5, 6)] == [
        "ok",
        "ok",
        "warn",
        "warn",
        "masked",
    ]


def test_the_strongest_of_several_is_one_that_is_surely_so_if_any_is() -> None:
    seems, sure = disagreeing(12, 3), disagreeing(8, 0)
    assert seems.points > sure.points
    assert most_significant({"a": seems, "b": sure}, 2.0) == ("b", sure, "masked")
    assert most_significant({"a": seems}, 2.0) == ("a", seems, "masked")
    several = {"a": seems, "b": disagreeing(5, 0), "c": disagreeing(0, 9)}
    assert most_significant(several, 2.0) == ("a", seems, "warn")  # p = 0.035 is not below 0.05 / 3
    chance = {"a": disagreeing(20, 12), "b": disagreeing(2, 2)}
    assert most_significant(chance, 2.0) == ("a", chance["a"], "ok")


def test_percent() -> None:
    assert percent(torch.tensor([True, False, False])) == pytest.approx(100 / 3, rel=1e-12)
