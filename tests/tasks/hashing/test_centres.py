"""Class centres: distances, columns, determinism, refusals, and majorities by brute force."""

from __future__ import annotations

import hashlib
import itertools
import time

import numpy as np
import pytest
import torch
from torch import Tensor

from sstune.schema import RequestError
from sstune.tasks.hashing import centres
from sstune.tasks.hashing.centres import class_centres, hadamard, target_centres, tie_code


def least_distance(codes: Tensor) -> int:
    one = codes.numpy()
    distances = (one[:, None] != one[None]).sum(2)
    return int(distances[~np.eye(len(one), dtype=bool)].min())


class TestHadamard:
    @pytest.mark.parametrize("order", [1, 2, 4, 8, 12, 16, 20, 24, 32, 40, 44, 48, 60, 64, 80, 96, 128, 256])
    def test_rows_and_columns_are_orthogonal(self, order: int) -> None:
        matrix = hadamard(order)
        assert matrix is not None
        assert set(np.unique(matrix)) <= {-1.0, 1.0}
        assert np.array_equal(matrix @ matrix.T, order * np.eye(order))
        assert np.array_equal(matrix.T @ matrix, order * np.eye(order))

    @pytest.mark.parametrize("order", [3, 6, 10, 14, 18, 28, 30, 36, 63])
    def test_other_orders_are_not_made(self, order: int) -> None:
        """28 and 36 exist by other constructions, 3 to 18 and odd ones do not exist."""
        assert hadamard(order) is None

    def test_powers_of_two_are_sylvesters(self) -> None:
        matrix = hadamard(16)
        assert matrix is not None
        expected = [[(-1.0) ** (i & j).bit_count() for j in range(16)] for i in range(16)]
        assert matrix.tolist() == expected


class TestClassCentres:
    @pytest.mark.parametrize(
        ("bits", "n"),
        [
            *itertools.product([16, 20, 24, 32, 40, 48, 64], [10, 21, 80, 100, 200]),
            *itertools.product([12, 28, 50], [10, 21, 100]),
            (128, 200),
        ],
    )
    def test_distances(self, bits: int, n: int) -> None:
        codes = class_centres(bits, n, seed=3)
        assert codes.shape == (n, bits)
        assert codes.dtype is torch.float32
        assert set(codes.unique().tolist()) == {-1.0, 1.0}
        exact = bits not in (28, 50) and n <= 2 * bits
        assert least_distance(codes) >= (bits / 2 if exact else bits // 4 + 1)
        if exact and n <= bits:
            assert torch.equal(codes @ codes.T, bits * torch.eye(n))

    @pytest.mark.parametrize("bits", [17, 31, 33])
    def test_odd_lengths(self, bits: int) -> None:
        codes = class_centres(bits, 40, seed=0)
        assert least_distance(codes) > bits / 4

    def test_a_search_takes_more_than_a_quarter_where_it_can(self) -> None:
        assert least_distance(class_centres(64, 200, seed=0)) >= 22
        assert least_distance(class_centres(16, 100, seed=0)) == 6, "the lexicode has 128 of these"

    @pytest.mark.parametrize(("bits", "n"), [(12, 16), (16, 32), (32, 64), (48, 96)])
    def test_all_rows_of_both_signs(self, bits: int, n: int) -> None:
        codes = class_centres(bits, min(n, 2 * bits), seed=1)
        assert len(codes.unique(dim=0)) == len(codes)

    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize(("bits", "n"), [(16, 10), (32, 10), (64, 10), (48, 10), (32, 21), (64, 100)])
    def test_no_bit_is_idle_or_repeats_another(self, bits: int, n: int, seed: int) -> None:
        """The first 10 rows of Sylvester's matrix have 16 distinct columns at every length, one constant."""
        codes = class_centres(bits, n, seed).numpy()
        products = np.abs(codes.T @ codes) - n * np.eye(bits)
        assert (products < n).all(), "two columns are equal or opposite"
        assert (np.abs(codes.sum(0)) < n).all(), "a column is constant"

    @pytest.mark.parametrize(("bits", "n"), [(64, 10), (48, 96), (40, 200), (16, 100)])
    def test_the_seed_determines_them(self, bits: int, n: int) -> None:
        codes = class_centres(bits, n, seed=5)
        torch.manual_seed(0)
        np.random.seed(0)
        assert torch.equal(codes, class_centres(bits, n, seed=5))
        assert not torch.equal(codes, class_centres(bits, n, seed=6))

    def test_they_stay_the_same_in_later_versions(self) -> None:
        """A stored network was trained towards them."""
        packed = {each: np.packbits(class_centres(*each, seed=0).numpy() > 0).tobytes() for each in PINNED}
        assert {each: hashlib.sha256(bits).hexdigest()[:16] for each, bits in packed.items()} == PINNED

    @pytest.mark.parametrize(("bits", "n"), [(16, 1000), (8, 17), (12, 200), (4, 9), (20, 3000), (2, 5)])
    def test_too_few_bits_are_refused(self, bits: int, n: int) -> None:
        with pytest.raises(RequestError, match=rf"^task\.bits: {bits} are too few bits for {n} classes: "):
            class_centres(bits, n, seed=0)

    def test_a_thousand_classes_take_about_a_second(self) -> None:
        start = time.process_time()
        codes = class_centres(64, 1000, seed=0)
        assert time.process_time() - start < 10, "the machine may be busy"
        assert least_distance(codes) >= 20

    def test_candidates_of_long_codes_are_balanced(self) -> None:
        block = next(centres._candidates(40, np.random.RandomState(0)))
        assert (block.sum(1) == 0).all()

    def test_candidates_of_short_codes_are_all(self) -> None:
        codes = np.concatenate([*centres._candidates(11, np.random.RandomState(0))])
        assert len(codes) == len(np.unique(codes, axis=0)) == 2**11

    def test_search_is_greedy(self) -> None:
        """The same as comparing one candidate at a time."""
        stream = centres._stream(4, "candidates")
        chosen: list[np.ndarray] = []
        for code in np.concatenate([*centres._candidates(18, stream)])[:3000]:
            if all((code != other).sum() >= 6 for other in chosen):
                chosen.append(code)
        chosen = chosen[:100]
        found = centres._search(18, 100, 6, 4)
        assert sorted(map(tuple, found)) == sorted(map(tuple, chosen))


PINNED = {
    (64, 10): "66e31a22fbf801e8",
    (48, 96): "c8edb5a0a51ca955",
    (40, 200): "6509b3c604c84e5a",
    (16, 100): "72aa1e7a32ddc677",
}
"""The start of a sha256, by bits and classes."""


class TestTargetCentres:
    def test_classes(self) -> None:
        codes, tie = class_centres(16, 10, 0), tie_code(16, 0)
        classes = torch.tensor([3, 0, 9, 3])
        assert torch.equal(target_centres(classes, codes, tie), codes[[3, 0, 9, 3]])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_majority_of_labels(self, dtype: torch.dtype) -> None:
        stream = np.random.default_rng(0)
        labels = (stream.random((40, 12)) < 0.25).astype(float)
        labels[0] = 0
        labels[1], labels[1, 4] = 0, 1
        codes, tie = class_centres(24, 12, 1), tie_code(24, 1)
        found = target_centres(torch.tensor(labels, dtype=dtype), codes, tie)
        for row, image in zip(found, labels, strict=True):
            for bit in range(24):
                chosen = [int(codes[label, bit]) for label in range(12) if image[label]]
                positive, negative = chosen.count(1), chosen.count(-1)
                wanted = int(tie[bit]) if positive == negative else 1 if positive > negative else -1
                assert int(row[bit]) == wanted
        assert torch.equal(found[0], tie)
        assert torch.equal(found[1], codes[4])

    def test_one_label_is_a_class(self) -> None:
        codes, tie = class_centres(32, 21, 2), tie_code(32, 2)
        classes = torch.arange(21)
        assert torch.equal(target_centres(torch.eye(21), codes, tie), target_centres(classes, codes, tie))

    def test_tie_code_is_random_and_seeded(self) -> None:
        one = tie_code(256, 0)
        assert one.shape == (256,)
        assert set(one.tolist()) == {-1.0, 1.0}
        assert 90 < int((one > 0).sum()) < 166
        assert torch.equal(one, tie_code(256, 0))
        assert not torch.equal(one, tie_code(256, 1))
