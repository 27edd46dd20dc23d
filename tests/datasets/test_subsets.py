from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sstune.datasets import Split, load
from sstune.datasets.splits import subset
from sstune.schema import DigitsConfig, RequestError

LABELS = st.lists(st.integers(0, 4), min_size=2, max_size=120)
SEED = st.integers(0, 2**32 - 1)
CLASSES = list("abcde")


def numbered(labels: list[int]) -> Split:
    return Split(torch.arange(len(labels)).to(torch.uint8).reshape(-1, 1, 1, 1), torch.tensor(labels))


def numbers(split: Split) -> list[int]:
    assert isinstance(split.images, torch.Tensor)
    return split.images.flatten().tolist()


@settings(max_examples=200)
@given(labels=LABELS, seed=SEED, data=st.data())
def test_train_n_is_exact_balanced_and_nested(labels: list[int], seed: int, data: st.DataObject) -> None:
    split = numbered(labels)
    n = data.draw(st.integers(1, len(labels)))
    part = subset(split, n, None, seed, CLASSES)
    assert len(part) == n
    assert numbers(part) == sorted(set(numbers(part)))
    assert part.targets.tolist() == [labels[i] for i in numbers(part)]
    assert numbers(subset(split, n, None, seed, CLASSES)) == numbers(part)
    smaller = subset(split, data.draw(st.integers(1, n)), None, seed, CLASSES)
    assert set(numbers(smaller)) <= set(numbers(part))

    counts = np.bincount(labels, minlength=5)
    taken = part.targets.bincount(minlength=5).numpy()
    present = (
        counts > 0
    )  # Webster: no class could give an image to another and both be nearer to their shares
    given_up, next_up = (taken - 0.5)[present] / counts[present], (taken + 0.5)[present] / counts[present]
    assert given_up[taken[present] > 0].max() <= next_up.min() + 1e-12


@given(per_class=st.integers(1, 25), seed=SEED, data=st.data())
def test_classes_of_equal_size_get_equal_numbers(per_class: int, seed: int, data: st.DataObject) -> None:
    """What the largest remainder gives, too: each class the floor or the ceiling of n / 5."""
    n = data.draw(st.integers(1, 5 * per_class))
    taken = subset(numbered(CLASSES_LABELS * per_class), n, None, seed, CLASSES).targets.bincount(minlength=5)
    assert set(taken.tolist()) <= {n // 5, math.ceil(n / 5)}


CLASSES_LABELS = [3, 1, 0, 2, 4]


@given(labels=LABELS, seed=SEED, shots=st.integers(1, 30))
def test_shots_are_exactly_that_many_of_each_class(labels: list[int], seed: int, shots: int) -> None:
    split, counts = numbered(labels), np.bincount(labels, minlength=5)
    if counts.min() < shots:
        fewest = int(counts.argmin())
        message = f"dataset.shots: {shots} images .* class '{CLASSES[fewest]}' has {counts[fewest]} "
        with pytest.raises(RequestError, match=message):
            subset(split, None, shots, seed, CLASSES)
        return
    part = subset(split, None, shots, seed, CLASSES)
    assert part.targets.bincount().tolist() == [shots] * 5
    assert numbers(part) == sorted(numbers(part))
    if shots > 1:
        assert set(numbers(subset(split, None, shots - 1, seed, CLASSES))) < set(numbers(part))


def test_seeds_draw_different_images_from_all_over_the_split() -> None:
    split = numbered(CLASSES_LABELS * 40)
    drawn = [frozenset(numbers(subset(split, None, 4, seed, CLASSES))) for seed in range(120)]
    assert len(set(drawn)) == 120
    assert frozenset().union(*drawn) == set(range(200))


def test_more_than_there_is_is_refused() -> None:
    with pytest.raises(RequestError, match=r"dataset.train_n: 6 is more than the 5 training images"):
        subset(numbered([0, 1, 2, 3, 4]), 6, None, 0, CLASSES)


def test_load_cuts_train_only_and_after_validation_was_split_off() -> None:
    whole = load(DigitsConfig(name="digits"))
    for changes in ({"train_n": 100}, {"shots": 10}):
        part = load(DigitsConfig(name="digits", **changes))
        assert (part.val.digest, part.test.digest) == (whole.val.digest, whole.test.digest)
        assert len(part.train) == 100
        rows = {image.numpy().tobytes() for image in whole.train.images}
        assert all(image.numpy().tobytes() in rows for image in part.train.images)
        assert part.train.digest != whole.train.digest
    with pytest.raises(
        RequestError, match=r"dataset.shots: 500 images of each class .* class '\d' has 12\d training"
    ):
        load(DigitsConfig(name="digits", shots=500))
    seeds = [load(DigitsConfig(name="digits", shots=3, subset_seed=seed)).train.digest for seed in (0, 0, 1)]
    assert seeds[0] == seeds[1] != seeds[2]
