"""Codes and labels hold what they are made from."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sstune.retrieval import Codes, Labels

SEEDS = st.integers(0, 2**32 - 1)
BITS = st.sampled_from([1, 7, 8, 9, 63, 64, 65, 127, 128, 130, 254, 255, 256, 300])


def test_zero_and_minus_zero_are_positive() -> None:
    tiny = 2.0**-149
    outputs = torch.tensor([[0.0, -0.0, tiny, -tiny, 5.0, -5.0, math.inf, -math.inf, -1.0]])
    codes = Codes.of(outputs)
    assert codes.packed.tolist() == [[0b11101010, 0]]
    assert codes.signs().tolist() == [[1, 1, 1, -1, 1, -1, 1, -1, -1]]
    assert codes.signs().dtype == np.int8
    assert Codes.of(outputs.bfloat16()).packed.tolist() == [[0b11111010, 0]]  # -tiny rounds to -0


def test_outputs_without_signs_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        Codes.of(torch.tensor([[1.0, math.nan]]))
    for shape in ((3,), (2, 0), (1, 2, 3)):
        with pytest.raises(ValueError, match=r"expected|bits"):
            Codes.of(torch.ones(shape))


@pytest.mark.parametrize(
    ("packed", "bits"),
    [
        (np.zeros((2, 1), np.uint8), 9),
        (np.zeros((2, 2), np.uint8), 8),
        (np.zeros((2, 1), np.int64), 8),
        (np.zeros(2, np.uint8), 8),
        (np.full((2, 1), 1, np.uint8), 7),
    ],
)
def test_bytes_that_are_no_codes_are_refused(packed: np.ndarray, bits: int) -> None:
    with pytest.raises(ValueError, match="bits"):
        Codes(packed, bits)


@given(SEEDS, BITS, st.sampled_from([1, 5]))
def test_signs_and_distances(seed: int, bits: int, n: int) -> None:
    outputs = torch.randn(n, bits, generator=torch.Generator().manual_seed(seed))
    outputs[0] = -outputs[-1] if n > 1 else outputs[0]  # a distance of all bits
    codes = Codes.of(outputs)
    assert len(codes) == n
    assert np.array_equal(codes.signs(), np.where(outputs.numpy() >= 0, 1, -1))
    for number in range(n):
        expected = (codes.signs() != codes.signs()[number]).sum(1)
        found = codes.distances(codes.words[number])
        assert found.tolist() == expected.tolist()
        assert found.dtype == (np.uint8 if bits < 255 else np.uint16)


def test_distances_to_more_items_than_a_block() -> None:
    draw = np.random.default_rng(0)
    codes = Codes(draw.integers(0, 256, (40_001, 9), np.uint8), 72)
    expected = np.bitwise_count(codes.packed ^ codes.packed[123]).sum(1)
    assert np.array_equal(codes.distances(codes.words[123]), expected)


@pytest.mark.parametrize("index", [[2, 0], [True, False, True], slice(1, 3)])
def test_some_of_them(index: list[int] | slice) -> None:
    picks = [index] if isinstance(index, slice) else [np.array(index), torch.tensor(index)]
    outputs = torch.randn(3, 70, generator=torch.Generator().manual_seed(0))
    hot = (outputs > 0.5).float()
    for pick in picks:
        expected = outputs.numpy()[picks[0]]
        assert np.array_equal(Codes.of(outputs).take(pick).signs() > 0, expected >= 0)
        assert np.array_equal(Labels.of(hot).take(pick).hot(), expected > 0.5)
        classes = Labels.of(torch.tensor([5, 6, 7])).take(pick)
        assert np.array_equal(classes.values, np.array([5, 6, 7])[picks[0]])


@given(
    SEEDS,
    st.sampled_from([1, 5, 64, 65, 130, 300]),
    st.sampled_from([torch.bool, torch.float32, torch.uint8]),
)
def test_shared_labels(seed: int, n_labels: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(seed)
    hot = torch.rand(6, n_labels, generator=draw) < 0.6
    hot[1] = False
    hot[2] = hot[3] = True
    labels = Labels.of(hot.to(dtype))
    assert labels.several
    assert len(labels) == 6
    assert labels.most == n_labels
    assert np.array_equal(labels.hot(), hot.numpy())
    for number in range(6):
        found = labels.shared(labels.row(number))
        assert found.tolist() == (hot & hot[number]).sum(1).tolist()
        assert found.dtype == (np.uint8 if n_labels <= 255 else np.uint16)


def test_classes_are_shared_where_they_are_equal() -> None:
    labels = Labels.of(torch.tensor([3, -1, 3, 10**12]))
    assert not labels.several
    assert labels.most == 1
    assert labels.shared(labels.row(0)).tolist() == [1, 0, 1, 0]
    assert labels.shared(labels.row(3)).dtype == np.uint8


@pytest.mark.parametrize(
    "targets",
    [
        torch.tensor([0.5, 1.0]),
        torch.tensor([True]),
        torch.ones(2, 0),
        torch.tensor([[0.5]]),
        torch.tensor([[2]]),
    ],
)
def test_targets_that_are_no_labels_are_refused(targets: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected classes|must be 0 or 1"):
        Labels.of(targets)
