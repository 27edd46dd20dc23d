"""Every metric equals its definition, computed by brute force, to 1e-12; on both paths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from fractions import Fraction
from typing import Any

import brute_force
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, ndcg_score

from sstune.retrieval import Codes, Labels, Ranked, RankSettings, average_precision, rank, tie_aware
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


@pytest.mark.parametrize("size", [2000, 50_000])
@pytest.mark.parametrize("share", [0.0005, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("end", [0.01, 0.5, 0.999])
def test_large_groups_that_are_cut(size: int, share: float, end: float) -> None:
    found, inside = int(size * share), int(size * end)
    for earlier in ((1000, 3), (7, 0)):
        expected = brute_force.cut_average_precision(earlier, (size, found), inside)
        assert found_ap([earlier, (size, found)], earlier[0] + inside) == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize("groups", [[(500_000, 2), (2, 2)], [(300_000, 30_000), (100_000, 3)]])
def test_large_groups_that_are_not_cut(groups: list[tuple[int, int]]) -> None:
    (before, hits), (size, found) = groups
    expected = brute_force.cut_average_precision((before, hits), (size, found), size)
    assert found_ap(groups, 10**6) == pytest.approx(expected, **CLOSE)


@given(SEEDS, st.integers(1, 300))
def test_of_hundreds_of_items_as_scikit_learn_has_it(seed: int, top: int) -> None:
    """Its NDCG averages over ties; its AP is the one meant where distances differ."""
    draw = np.random.default_rng(seed)
    n = 200
    shared, distances = draw.integers(0, 4, n), draw.integers(0, 9, n)
    histogram = np.zeros((1, 4, 9), np.int64)
    np.add.at(histogram[0], (shared, distances), 1)
    expected = ndcg_score([2.0**shared - 1], [-distances], k=top)
    assert tie_aware.ndcg(histogram, top)[0] == pytest.approx(expected, rel=1e-12)

    order = draw.permutation(n)
    hits = (shared > 0).astype(np.int64)
    groups = Groups(np.ones((1, n), np.int64), hits[order][None])
    ranks = np.argsort(order)
    expected = average_precision_score(hits, -ranks)
    assert tie_aware.average_precision(groups, n)[0] == pytest.approx(expected, rel=1e-12)


def values(ranked: Ranked) -> dict[str, Any]:
    return {item.name: getattr(ranked, item.name) for item in fields(Ranked)}


def assert_same(one: Ranked, other: Ranked) -> None:
    for name, value in values(one).items():
        np.testing.assert_array_equal(value, values(other)[name], strict=True, err_msg=name)


@settings(max_examples=25)
@given(
    SEEDS, st.booleans(), st.sampled_from([5, 64, 254, 255, 256]), st.sampled_from([None, 1, 7, 150, 400]),
    st.booleans(),
)  # fmt: skip
def test_a_device_gives_exactly_what_the_host_gives(
    seed: int, several: bool, bits: int, top: int | None, skips: bool
) -> None:
    case = Case(seed, 300, bits, several, queries=70)
    skip = np.random.default_rng(seed).integers(-1, 300, 70) if skips else None
    host, device = (case.rank(top=top, skip=skip, device=where) for where in (None, "cpu"))
    assert_same(host, device)


def test_a_device_is_exact_under_autocast() -> None:
    case = Case(0, 300, 700, several=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(case.rank(), case.rank(device="cpu"))


@pytest.mark.parametrize("top", [None, 1000])
def test_a_device_gives_the_same_for_a_database_of_several_blocks(top: int | None) -> None:
    case = Case(0, 70_000, 12, several=True, queries=2)
    assert_same(case.rank(top=top), case.rank(top=top, device="cpu"))


@settings(max_examples=20)
@given(SEEDS, st.booleans(), st.sampled_from([None, 7, 150]))
def test_queries_and_threads_do_not_matter(seed: int, several: bool, top: int | None) -> None:
    """A query has the same figures, to the last bit, alone and among others."""
    case = Case(seed, 300, 12, several, queries=140)
    outputs = (case.query_bits - 0.4, case.database_bits - 0.4)
    together = case.rank(top=top, outputs=outputs)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert_same(together, case.rank(top=top, outputs=outputs))
    finally:
        torch.set_num_threads(before)
    for number in (0, 139):
        index = np.array([number])
        alone = rank(
            case.queries.take(index), case.query_labels.take(index), case.database, case.labels,
            RankSettings(top=top, outputs=(outputs[0][index], outputs[1])),
        )  # fmt: skip
        for name, value in values(together).items():
            expected = None if value is None else value[index]
            np.testing.assert_array_equal(values(alone)[name], expected, err_msg=name)


@given(SEEDS, st.booleans(), st.sampled_from([None, 3, 40]))
def test_average_precision_alone(seed: int, several: bool, top: int | None) -> None:
    case = Case(seed, 50, 9, several)
    keys = RankSettings(top=top, skip=np.array([3, -1, 49]))
    found = average_precision(case.queries, case.query_labels, case.database, case.labels, keys)
    np.testing.assert_array_equal(found, case.rank(top=top, skip=keys.skip).ap)


@settings(max_examples=30)
@given(SEEDS, st.booleans(), st.sampled_from([None, 3, 20, 100]), DEVICES)
def test_a_query_leaves_itself_out(seed: int, several: bool, top: int | None, device: str | None) -> None:
    """As if the database had no such item."""
    case = Case(seed, 30, 6, several)
    outputs = (torch.randn(3, 6), torch.randn(30, 6))
    skip = np.array([4, -1, 29])
    keys: dict[str, Any] = {"top": top, "cutoffs": (1, 10, 29, 30, 50), "device": device}
    found = case.rank(**keys, skip=skip, outputs=outputs)
    for number in range(3):
        kept = np.flatnonzero(np.arange(30) != skip[number])
        alone = rank(
            case.queries.take(slice(number, number + 1)), case.query_labels.take(slice(number, number + 1)),
            case.database.take(kept), case.labels.take(kept),
            RankSettings(**keys, outputs=(outputs[0][number : number + 1], outputs[1][kept])),
        )  # fmt: skip
        for name, value in values(found).items():
            if value is not None:
                np.testing.assert_allclose(value[number], values(alone)[name][0], rtol=1e-14, err_msg=name)


@given(SEEDS, st.sampled_from([None, 1, 5, 40]))
def test_refined_order(seed: int, top: int | None) -> None:
    """Ties by the squared distance of the normalised outputs, then by index; some outputs are equal."""
    draw = torch.Generator().manual_seed(seed)
    outputs = torch.randn(12, 4, generator=draw)[torch.randint(12, (40,), generator=draw)]
    queries, targets = torch.randn(2, 4, generator=draw), torch.randint(2, (40,), generator=draw)
    outputs[7] = 0
    own = torch.tensor([0, 1])
    found = rank(
        Codes.of(queries), Labels.of(own), Codes.of(outputs), Labels.of(targets),
        RankSettings(top=top, outputs=(queries, outputs)),
    ).ap_refined  # fmt: skip
    assert found is not None

    def normalised(row: torch.Tensor) -> list[float]:
        norm = math.hypot(*row.tolist())
        return [value / norm if norm else 0.0 for value in row.tolist()]

    for query, row in enumerate(queries):
        keys = []
        for item, other in enumerate(outputs):
            bits = brute_force.hamming((row >= 0).tolist(), (other >= 0).tolist())
            pairs = zip(normalised(row), normalised(other), strict=True)
            keys.append((bits, round(sum((a - b) ** 2 for a, b in pairs), 9), item))
        relevant = [bool(targets[item] == own[query]) for *_, item in sorted(keys)]
        assert found[query] == pytest.approx(float(brute_force.average_precision(relevant, top)), **CLOSE)


def test_items_without_relevance_and_empty_sets() -> None:
    """A query without hits counts 0 and stays; nothing to rank is no error."""
    case = Case(0, 20, 4, several=False)
    lost = rank(case.queries, Labels.of(torch.full((3,), 9)), case.database, case.labels)
    for name, value in values(lost).items():
        assert value is None or (not value.any() and len(value) == 3), name
    nobody = slice(0, 0)
    nothing = rank(case.queries, case.query_labels, case.database.take(nobody), case.labels.take(nobody))
    assert nothing.ap.tolist() == [0, 0, 0]
    for device in (None, "cpu"):
        unasked = rank(
            case.queries.take(nobody), case.query_labels.take(nobody), case.database, case.labels,
            RankSettings(device=device),
        )  # fmt: skip
        assert unasked.ap.shape == (0,)
        assert unasked.precision.shape == (0, 10)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"top": 0}, "must be 1 or more, got 0"),
        ({"top": -1}, "must be 1 or more, got -1"),
        ({"cutoffs": (10, 0)}, "must be 1 or more, got 0"),
        ({"radius": -1}, "radius"),
        ({"skip": np.zeros(2, np.int64)}, r"expected \(3,\), got \(2,\)"),
        ({"skip": np.array([0, 1, 20])}, "an item of 20"),
        ({"outputs": (torch.ones(3, 4), torch.ones(19, 4))}, "of the queries and of the database"),
        ({"outputs": (torch.ones(3, 4), torch.ones(20, 5))}, r"\(3, 4\) and \(20, 5\)"),
        ({"outputs": (torch.ones(3, 4), torch.full((20, 4), math.nan))}, "NaN or infinite"),
    ],
)
def test_settings_that_do_not_fit(keys: dict[str, Any], message: str) -> None:
    case = Case(0, 20, 4, several=False)
    with pytest.raises(ValueError, match=message):
        case.rank(**keys)


def test_sides_that_do_not_fit() -> None:
    case, other = Case(0, 20, 4, several=False), Case(0, 20, 5, several=True)
    with pytest.raises(ValueError, match="4 bits, the database has 5"):
        rank(case.queries, case.query_labels, other.database, case.labels)
    with pytest.raises(ValueError, match="kinds or numbers of labels"):
        rank(case.queries, case.query_labels, case.database, other.labels)
    with pytest.raises(ValueError, match="20 codes and labels of 3 items"):
        rank(case.queries, case.query_labels, case.database, case.query_labels)
