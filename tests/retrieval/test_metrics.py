"""Every metric equals its definition, computed by brute force, to 1e-12; on both paths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import brute_force
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sstune.retrieval import Codes, Labels, Ranked, RankSettings, rank, tie_aware
from sstune.retrieval.tie_aware import Groups

CLOSE = {"rel": 1e-12, "abs": 1e-13}
SEEDS = st.integers(0, 2**32 - 1)


class Case:
    """Random codes with few different distances, so that ties are frequent; with classes or labels."""

    def __init__(self, seed: int, items: int, bits: int, several: bool, queries: int = 3) -> None:
        draw = torch.Generator().manual_seed(seed)
        kinds = torch.randint(2, (4, bits), generator=draw)  # a database of four different codes
        flips = torch.rand(items, bits, generator=draw) < 1 / (2 * bits)
        picked = torch.randint(4, (items,), generator=draw)
        self.database_bits = kinds[picked] ^ flips
        self.query_bits = torch.cat([kinds[:1], torch.randint(2, (queries - 1, bits), generator=draw)])
        if several:
            self.query_targets = (torch.rand(queries, 5, generator=draw) < 0.5).float()
            self.targets = (torch.rand(items, 5, generator=draw) < 0.3).float()
        else:
            self.query_targets = torch.randint(4, (queries,), generator=draw)  # class 3 is in no database
            self.targets = torch.randint(3, (items,), generator=draw)
        self.queries, self.database = (Codes.of(b - 0.5) for b in (self.query_bits, self.database_bits))
        self.query_labels, self.labels = Labels.of(self.query_targets), Labels.of(self.targets)

    def rank(self, **keys: Any) -> Ranked:
        return rank(self.queries, self.query_labels, self.database, self.labels, RankSettings(**keys))

    def distances(self, query: int) -> list[int]:
        code = self.query_bits[query].tolist()
        return [brute_force.hamming(code, other) for other in self.database_bits.tolist()]

    def shared(self, query: int) -> list[int]:
        own = self.query_targets[query]
        if own.ndim == 0:
            return [int(own == other) for other in self.targets]
        return [int((own * other).sum()) for other in self.targets]

    def has_few_orders(self, largest: int = 3000) -> bool:
        return all(self.n_orders(query) <= largest for query in range(len(self.queries)))

    def n_orders(self, query: int) -> int:
        distances = self.distances(query)
        return math.prod(math.factorial(distances.count(value)) for value in set(distances))


CASES = st.builds(
    Case, SEEDS, items=st.integers(1, 8), bits=st.sampled_from([1, 3, 8, 13, 64, 70, 128, 131]),
    several=st.booleans(),
)  # fmt: skip
DEVICES = st.sampled_from([None, "cpu"])


@settings(max_examples=60)
@given(CASES, st.none() | st.integers(1, 10), DEVICES)
def test_average_precision_of_tied_and_stable_order(case: Case, top: int | None, device: str | None) -> None:
    assume(case.has_few_orders())
    found = case.rank(top=top, device=device)
    for query in range(len(case.queries)):
        distances, shared = case.distances(query), case.shared(query)

        def of(order: list[int], shared: list[int] = shared) -> Fraction:
            return brute_force.average_precision([shared[item] > 0 for item in order], top)

        assert found.ap[query] == pytest.approx(brute_force.expectation(distances, of), **CLOSE)
        assert found.ap_stable is not None
        stable = sorted(range(len(distances)), key=lambda item: (distances[item], item))
        assert found.ap_stable[query] == pytest.approx(float(of(stable)), **CLOSE)


@settings(max_examples=60)
@given(CASES, st.lists(st.integers(1, 12), max_size=3), st.integers(0, 4), DEVICES)
def test_precision_and_recall(case: Case, cutoffs: list[int], radius: int, device: str | None) -> None:
    assume(case.has_few_orders(1000))
    found = case.rank(cutoffs=tuple(cutoffs), radius=radius, device=device)
    for query in range(len(case.queries)):
        distances, shared = case.distances(query), case.shared(query)
        relevant = sum(value > 0 for value in shared)
        assert found.relevant[query] == relevant
        for column, n in enumerate(cutoffs):
            first = min(n, len(shared))

            def hits(order: list[int], shared: list[int] = shared, n: int = n) -> Fraction:
                return Fraction(sum(shared[item] > 0 for item in order[:n]))

            expected = brute_force.expectation(distances, hits)
            assert found.precision[query, column] == pytest.approx(expected / first, **CLOSE)
            assert found.recall[query, column] == pytest.approx(expected / max(relevant, 1), **CLOSE)
        ball = [value > 0 for value, distance in zip(shared, distances, strict=True) if distance <= radius]
        assert found.precision_within[query] == pytest.approx(sum(ball) / max(len(ball), 1), **CLOSE)


@settings(max_examples=60)
@given(CASES, DEVICES)
def test_precision_at_recall(case: Case, device: str | None) -> None:
    found = case.rank(device=device).precision_at_recall
    for query in range(len(case.queries)):
        distances, shared = case.distances(query), case.shared(query)
        relevant = sum(value > 0 for value in shared)
        for level in range(1, 101):
            expected = 0.0
            for radius in sorted(set(distances)):
                ball = [value > 0 for value, d in zip(shared, distances, strict=True) if d <= radius]
                if relevant and Fraction(sum(ball), relevant) >= Fraction(level, 100):
                    expected = sum(ball) / len(ball)
                    break
            assert found[query, level - 1] == pytest.approx(expected, **CLOSE)


@settings(max_examples=40)
@given(CASES, DEVICES)
def test_ndcg_of_several_labels(case: Case, device: str | None) -> None:
    assume(case.has_few_orders(1000))
    found = case.rank(device=device).ndcg
    if not case.labels.several:
        assert found is None
        return
    assert found is not None
    for query in range(len(case.queries)):
        shared = case.shared(query)

        def of(order: list[int], shared: list[int] = shared) -> float:
            return brute_force.ndcg([shared[item] for item in order], 1000)

        assert found[query] == pytest.approx(brute_force.expectation(case.distances(query), of), **CLOSE)


@given(SEEDS, st.integers(1, 9))
def test_ndcg_is_cut_inside_a_tie(seed: int, top: int) -> None:
    case = Case(seed, 7, 3, several=True)
    assume(case.has_few_orders(1000))
    histograms = np.zeros((len(case.queries), 6, 4), np.int64)
    for query in range(len(case.queries)):
        np.add.at(histograms[query], (case.shared(query), case.distances(query)), 1)
    found = tie_aware.ndcg(histograms, top)
    for query in range(len(case.queries)):
        shared = case.shared(query)

        def of(order: list[int], shared: list[int] = shared) -> float:
            return brute_force.ndcg([shared[item] for item in order], top)

        assert found[query] == pytest.approx(brute_force.expectation(case.distances(query), of), **CLOSE)


def expected_ap(groups: Sequence[tuple[int, int]], top: int) -> float:
    return float(brute_force.tied_average_precision(groups, top))


def found_ap(groups: Sequence[tuple[int, int]], top: int) -> float:
    size, hits = (np.array([column]) for column in zip(*groups, strict=True))
    return float(tie_aware.average_precision(Groups(size, hits), top)[0])


@given(
    st.lists(st.integers(0, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), min_size=1),
    st.integers(1, 200),
)
def test_groups_of_dozens(groups: list[tuple[int, int]], top: int) -> None:
    assert found_ap(groups, top) == pytest.approx(expected_ap(groups, top), **CLOSE)
