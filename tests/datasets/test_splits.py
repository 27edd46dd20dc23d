from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sstune.datasets.splits import Split, Splits, evenly_spaced, permutation, split_off
from sstune.schema import RequestError


def numbered(labels: list[int]) -> Split:
    """A split whose i-th image has the pixels (i // 256, i % 256)."""
    pixels = [[[[i // 256, i % 256]]] for i in range(len(labels))]
    return Split(torch.tensor(pixels, dtype=torch.uint8), torch.tensor(labels))


def numbers(split: Split) -> list[int]:
    return [int(image[0, 0, 0]) * 256 + int(image[0, 0, 1]) for image in split.images]


@given(n=st.integers(0, 300), seed=st.integers(0, 2**63 - 1))
def test_permutation_is_one(n: int, seed: int) -> None:
    order = permutation(n, seed)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(n))


def test_permutations_never_change() -> None:
    """Every published split and order rests on these; they must survive every upgrade."""
    assert permutation(8, 0).tolist() == [3, 7, 4, 0, 2, 6, 5, 1]
    assert permutation(8, 2**40 + 1).tolist() == [7, 4, 1, 2, 6, 5, 0, 3]
    assert permutation(8, 1).tolist() != permutation(8, 2**40 + 1).tolist()


class TestSplit:
    @pytest.mark.parametrize(
        ("images", "labels", "message"),
        [
            (torch.zeros(2, 1, 8, 8), torch.zeros(2).long(), "images: expected uint8"),
            (torch.zeros(2, 8, 8).byte(), torch.zeros(2).long(), "images: expected uint8"),
            (torch.zeros(2, 1, 8, 8).byte(), torch.zeros(2).int(), "targets: expected int64"),
            (torch.zeros(2, 1, 8, 8).byte(), torch.zeros(3).long(), "targets: expected int64"),
        ],
    )
    def test_refuses_anything_else(self, images: torch.Tensor, labels: torch.Tensor, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Split(images, labels)

    def test_digest_is_sha256_of_shape_images_and_labels(self) -> None:
        split = numbered([3, 1, 4])
        content = b"(3, 1, 1, 2)" + bytes([0, 0, 0, 1, 0, 2]) + np.array([3, 1, 4], "<i8").tobytes()
        assert split.digest == hashlib.sha256(content).hexdigest()

    def test_digest_sees_every_part_but_not_the_memory_layout(self) -> None:
        images, labels = torch.arange(96).byte().reshape(4, 3, 2, 4), torch.tensor([0, 1, 0, 1])
        digest = Split(images, labels).digest
        assert Split(images.to(memory_format=torch.channels_last), labels).digest == digest
        assert Split(images.reshape(4, 3, 4, 2), labels).digest != digest
        assert Split(images, labels.flip(0)).digest != digest
        assert Split(images.flip(0), labels).digest != digest

    def test_digest_is_computed_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        split = numbered([0, 1])
        first = split.digest
        monkeypatch.setattr(hashlib, "sha256", lambda *_: pytest.fail("hashed again"))
        assert split.digest == first

    @given(size=st.integers(1, 60), n=st.integers(1, 80), seed=st.integers(0, 2**32 - 1))
    def test_sample_draws_without_replacement_and_says_which(self, size: int, n: int, seed: int) -> None:
        split = numbered([i * i % 7 for i in range(size)])
        part, index = split.sample(n, seed)
        assert len(part) == min(n, size)
        assert numbers(part) == index.tolist() == sorted(set(index.tolist()))
        assert torch.equal(part.targets, split.targets[index])
        assert torch.equal(split.sample(n, seed)[1], index)
        assert set(index.tolist()) <= set(split.sample(n + 1, seed)[1].tolist())

    def test_sample_follows_the_seed_and_reaches_every_image(self) -> None:
        split = numbered([0] * 20)
        drawn = [split.sample(5, seed)[1].tolist() for seed in range(60)]
        assert len({tuple(index) for index in drawn}) > 50
        assert {position for index in drawn for position in index} == set(range(20))

    @pytest.mark.parametrize("n", [None, 3, 4])
    def test_sample_of_everything(self, n: int | None) -> None:
        split = numbered([2, 0, 1])
        part, index = split.sample(n, seed=5)
        assert part.digest == split.digest
        assert index.tolist() == [0, 1, 2]

    @pytest.mark.parametrize("n", [0, -1])
    def test_sample_of_nothing_is_refused(self, n: int) -> None:
        with pytest.raises(ValueError, match="cannot sample"):
            numbered([0, 1]).sample(n, seed=0)


@given(st.integers(0, 300), st.integers(1, 300))
def test_spread_is_even(n: int, among: int) -> None:
    positions = evenly_spaced(n, among).tolist()
    assert len(positions) == min(n, among)
    steps = {later - earlier for earlier, later in itertools.pairwise([*positions, among])}
    assert steps <= {among // len(positions), among // len(positions) + 1} if positions else not steps


def test_splits_describe_their_images() -> None:
    split = Split(torch.zeros(2, 3, 5, 7, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    splits = Splits(split, split, split, ["a", "b"])
    assert (splits.channels, splits.image_size, splits.n_classes) == (3, (5, 7), 2)


@settings(max_examples=200)
@given(labels=st.lists(st.integers(0, 5), min_size=2, max_size=120), fraction=st.floats(0.01, 0.9))
def test_split_off_partitions_and_stratifies(labels: list[int], fraction: float) -> None:
    split = numbered(labels)
    try:
        rest, part = split_off(split, fraction, "key")
    except RequestError:
        assert round(len(labels) * fraction) == 0 or max(np.bincount(labels)) == 1
        return
    assert sorted(numbers(rest) + numbers(part)) == list(range(len(labels)))
    assert numbers(rest) == sorted(numbers(rest))
    assert numbers(part) == sorted(numbers(part))
    assert part.targets.tolist() == [labels[i] for i in numbers(part)]
    for label in set(labels):
        total, taken = labels.count(label), part.targets.tolist().count(label)
        assert abs(taken - total * fraction) < 1 + 1e-6
        assert taken < total
    if all(labels.count(label) * (1 - fraction) > 1 for label in set(labels)):
        assert len(part) == round(len(labels) * fraction)


def test_split_off_draws_from_all_over_the_split() -> None:
    _, part = split_off(numbered([0] * 1000), 0.5, "key")
    assert 200 < sum(i < 500 for i in numbers(part)) < 300


def test_split_off_an_empty_part_is_refused() -> None:
    with pytest.raises(RequestError, match=r"dataset.val_fraction: 0.01 of 10 images"):
        split_off(numbered([0] * 10), 0.01, "dataset.val_fraction")
