"""Retrieval protocols, against counts and sets that are computed here."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sstune.datasets import ImageFiles, Split, Splits, load, retrieval_splits
from sstune.datasets.decoding import View
from sstune.datasets.splits import permutation
from sstune.schema import PROTOCOLS, DigitsConfig, FolderConfig, Queries, RequestError, SplitConfig
from sstune.seeding import seed_from

DIGITS = DigitsConfig(name="digits", label="digits", mean=[0.3], std=[0.3])
SMALL = {"n_query": 20, "n_train": 50, "n_val": 10}
NEEDED = "images of each class are needed, but class"
PARTS = ("train", "val", "test", "database")


def numbered(labels: Tensor, start: int) -> Split:
    """A split whose i-th image has the bytes of ``start`` + i as its pixels."""
    numbers = np.arange(start, start + len(labels), dtype="<u4")
    return Split(torch.from_numpy(numbers.view(np.uint8).reshape(-1, 1, 2, 2).copy()), labels)


def numbers(split: Split) -> list[int]:
    assert isinstance(split.images, Tensor)
    return split.images.contiguous().numpy().reshape(-1, 4).view("<u4")[:, 0].tolist()


def cifar_like() -> Splits:
    """As many images as CIFAR-10, each class in one block as in a folder: 45,000, 5,000 and 10,000."""
    sizes, start, parts = (4500, 500, 1000), 0, []
    for size in sizes:
        parts.append(numbered(torch.arange(10).repeat_interleave(size), start))
        start += 10 * size
    return Splits(*parts, [f"class {label}" for label in range(10)])


@pytest.fixture(scope="module")
def cifar() -> Splits:
    return cifar_like()


def sets(splits: Splits) -> dict[str, set[int]]:
    return {name: set(numbers(split)) for name, split in splits.named.items()}


def check_consistent(before: Splits, after: Splits) -> None:
    """Indices, images and labels agree; no image is twice in a part; a query is nowhere else."""
    labels = torch.cat([split.targets for split in (before.train, before.val, before.test)])
    assert after.indices is not None
    assert tuple(after.named) == tuple(after.indices) == PARTS
    for name, split in after.named.items():
        index = after.indices[name]
        assert index.dtype == torch.int64
        assert numbers(split) == index.tolist()
        assert len(set(index.tolist())) == len(index) == len(split)
        assert torch.equal(split.targets, labels[index])
    found = sets(after)
    assert not found["test"] & (found["train"] | found["val"] | found["database"])
    assert not found["train"] & found["val"]


# protocol -> queries, training and validation images a class; size of the database
PUBLISHED = {
    "cifar10-0": ((100, 500, 100), 54_000),
    "cifar10-1": ((100, 500, 100), 59_000),
    "cifar10-2": ((1000, 4900, 100), 50_000),
    "cifar10-authors": ((100, 500, 100), 53_000),
    "mnist": ((100, 500, 100), 59_000),
    "tiny-imagenet-32": ((25, 65, 10), 59_750),
}


def test_all_protocols_are_tried() -> None:
    assert set(PUBLISHED) == set(PROTOCOLS)


@pytest.mark.parametrize("queries", Queries)
@pytest.mark.parametrize("name", PUBLISHED)
def test_protocols_have_the_published_numbers(cifar: Splits, name: str, queries: Queries) -> None:
    (n_query, n_train, n_val), n_database = PUBLISHED[name]
    whole = name == "cifar10-2" and queries is Queries.pooled
    made = retrieval_splits(cifar, SplitConfig(name, queries, n_query=1000 if whole else None))
    check_consistent(cifar, made)
    assert made.test.targets.bincount().tolist() == [n_query] * 10
    assert made.train.targets.bincount().tolist() == [n_train] * 10
    assert made.val.targets.bincount().tolist() == [n_val] * 10
    assert made.database is not None
    assert len(made.database) == n_database
    found, everything = sets(made), set(range(60_000))
    rest = everything - found["test"] - found["train"] - found["val"]
    assert (
        found["database"]
        == {
            "cifar10-0": found["val"] | rest,
            "cifar10-1": found["train"] | found["val"] | rest,
            "cifar10-2": found["train"] | found["val"],
            "cifar10-authors": rest,
            "mnist": everything - found["test"],
            "tiny-imagenet-32": everything - found["test"],
        }[name]
    )
    if queries is Queries.test:
        assert min(found["test"]) >= 50_000
        assert max(found["train"] | found["val"]) < 50_000
    else:
        seen = sum(number < 50_000 for number in found["test"]) / len(found["test"])
        assert abs(seen - 5 / 6) < 0.08
    where = "the test split" if queries is Queries.test else "all images"
    assert made.remarks == [
        f"retrieval {name}: {10 * n_query:,} queries (from {where}), {10 * n_train:,} train, "
        f"{10 * n_val:,} val, database {n_database:,}"
    ]


def test_the_database_is_shuffled_and_the_other_parts_keep_the_order(cifar: Splits) -> None:
    made = retrieval_splits(cifar, SplitConfig())
    assert made.database is not None
    assert made.indices is not None
    for name in ("train", "val", "test"):
        assert made.indices[name].tolist() == sorted(made.indices[name].tolist())
    place, label = np.arange(59_000.0), made.database.targets.numpy()
    assert abs(np.corrcoef(place, label)[0, 1]) < 0.02  # 0.4 in the pool's order
    assert abs(np.corrcoef(place, made.indices["database"].numpy())[0, 1]) < 0.02
    runs = 1 + int((label[1:] != label[:-1]).sum())
    assert runs > 0.85 * 59_000
    other = retrieval_splits(cifar, SplitConfig(seed=1))
    assert numbers(other.database or made.database) != numbers(made.database)


@pytest.mark.parametrize("queries", Queries)
def test_the_seed_determines_the_splits(cifar: Splits, queries: Queries) -> None:
    one, again, other = (
        retrieval_splits(cifar, SplitConfig(queries=queries, seed=seed)).indices for seed in (5, 5, 6)
    )
    assert one is not None
    assert again is not None
    assert other is not None
    for name in PARTS:
        assert torch.equal(one[name], again[name])
        assert not torch.equal(one[name], other[name])


def test_splits_never_change(cifar: Splits) -> None:
    """Published results rest on these images."""
    made = retrieval_splits(cifar, SplitConfig())
    assert made.indices is not None
    assert {name: index[:4].tolist() for name, index in made.indices.items()} == {
        "train": [2, 17, 18, 26],
        "val": [16, 22, 55, 434],
        "test": [50005, 50006, 50020, 50027],
        "database": [25409, 35520, 58883, 19845],
    }


def test_draws_are_the_ends_of_a_random_order_of_each_class(cifar: Splits) -> None:
    made = retrieval_splits(cifar, SplitConfig(seed=4))
    labels = torch.cat([cifar.train.targets, cifar.val.targets, cifar.test.targets]).tolist()
    orders = {
        part: permutation(60_000, seed_from(4, "retrieval", part)).tolist() for part in ("query", "train")
    }
    expected: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for label in range(10):
        drawn = {part: [i for i in order if labels[i] == label] for part, order in orders.items()}
        expected["test"] += [i for i in drawn["query"] if i >= 50_000][:100]
        expected["train"] += [i for i in drawn["train"] if i < 50_000][:500]
        expected["val"] += [i for i in drawn["train"] if i < 50_000][-100:]
    for name, index in expected.items():
        assert numbers(made.named[name]) == sorted(index)


@pytest.mark.parametrize("queries", Queries)
@pytest.mark.parametrize(("key", "part"), [("n_query", "test"), ("n_train", "train"), ("n_val", "val")])
def test_a_larger_number_contains_a_smaller_one(queries: Queries, key: str, part: str) -> None:
    splits = load(DIGITS)
    small, large = (
        retrieval_splits(splits, SplitConfig(queries=queries, **{**SMALL, key: n})).indices for n in (6, 30)
    )
    assert small is not None
    assert large is not None
    assert set(small[part].tolist()) < set(large[part].tolist())
    if queries is Queries.test:  # the other parts stay
        for name in {"train", "val", "test"} - {part}:
            assert torch.equal(small[name], large[name])


def test_digits_through_load_and_a_subset_of_the_training_images() -> None:
    config = SplitConfig(**SMALL)
    made = load(DIGITS, split=config)
    assert {name: len(split) for name, split in made.named.items()} == {
        "train": 500, "val": 100, "test": 200, "database": 1597
    }  # fmt: skip
    few = load(DigitsConfig(**{**vars(DIGITS), "shots": 5}), split=config)
    assert few.train.targets.bincount().tolist() == [5] * 10
    assert few.database is not None
    assert made.database is not None
    assert few.database.digest == made.database.digest
    assert few.indices is not None
    assert made.indices is not None
    assert len(few.indices["train"]) == 50
    assert set(few.indices["train"].tolist()) < set(made.indices["train"].tolist())
    parts = load(DIGITS).named.values()
    images = torch.cat([part.images for part in parts if isinstance(part.images, Tensor)])
    assert torch.equal(images[few.indices["train"]], few.train.images)
    assert "database" not in load(DIGITS).named


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"n_query": None},
            f"split.n_query: 100 {NEEDED} '2' has 35 images in the test split",
        ),
        (
            {"n_query": 200, "queries": Queries.pooled},
            f"split.n_query: 200 {NEEDED} '8' has 174 images",
        ),
        (
            {"n_val": 200},
            f"split.n_val: 200 {NEEDED} '8' has 139 images outside the test split",
        ),
        (
            {"n_train": 130},
            f"split.n_train: 130 {NEEDED} '8' has 129 images outside the test "
            "split and besides the validation images",
        ),
        (
            {"n_train": 150, "queries": Queries.pooled},
            f"split.n_train: 150 {NEEDED} '8' has 144 images besides the queries "
            "and besides the validation images",
        ),
    ],
)
def test_too_few_images_are_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        retrieval_splits(load(DIGITS), SplitConfig(**{**SMALL, **changes}))
    assert str(caught.value) == message


def test_an_empty_part_is_refused() -> None:
    labels = torch.arange(2).repeat(6)
    splits = Splits(numbered(labels[:6], 0), numbered(labels[:2], 6), numbered(labels[:4], 8), ["a", "b"])
    config = SplitConfig("cifar10-authors", n_query=2, n_train=3, n_val=1)
    with pytest.raises(RequestError, match=r"^split.protocol: no image is left for the database$"):
        retrieval_splits(splits, config)
    config = SplitConfig("cifar10-2", n_val=4)
    with pytest.raises(RequestError, match=r"^split.n_train: no image is left for the train split$"):
        retrieval_splits(splits, config)


def multi_label(n: int, start: int) -> Split:
    """Four labels; each seventh image has none."""
    place = torch.arange(n)
    labels = torch.stack([(place % step == 0) for step in (2, 3, 5, 1)], 1).float()
    labels[place % 7 == 0] = 0
    return numbered(labels, start)


def test_several_labels_are_drawn_from_all_images_with_a_label() -> None:
    splits = Splits(multi_label(700, 0), multi_label(140, 700), multi_label(280, 840), list("abcd"))
    made = retrieval_splits(splits, SplitConfig(n_query=50, n_train=60, n_val=10))
    check_consistent(splits, made)
    assert [len(split) for split in made.named.values()] == [240, 40, 200, 920]
    for split in (made.train, made.val, made.test):
        assert split.targets.any(1).all()
    assert made.remarks[0].endswith("database 920, drawn from all classes together")
    with pytest.raises(RequestError) as caught:
        retrieval_splits(splits, SplitConfig(n_query=61, n_train=60, n_val=10))
    assert str(caught.value) == (
        "split.n_query: 61 images a class, 244 in all, are needed, but only 240 images in the test split "
        "have a label"
    )


def own_database(n_val: int = 6) -> Splits:
    """A dataset with a database that contains its training images; val is empty unless ``n_val``."""
    labels = torch.arange(3).repeat(40)
    whole = numbered(labels, 0)
    index = {
        "train": torch.arange(60, 90),
        "val": torch.arange(n_val),
        "test": torch.arange(90, 120),
        "database": torch.arange(90),
    }
    parts = {name: whole.take(each) for name, each in index.items()}
    return Splits(
        parts["train"], parts["val"], parts["test"], list("abc"), database=parts["database"], indices=index
    )


def test_a_database_of_the_datasets_own_is_only_shuffled() -> None:
    before = own_database()
    made = retrieval_splits(before, SplitConfig(seed=3))
    for name in ("train", "val", "test"):
        assert numbers(made.named[name]) == numbers(before.named[name])
    assert made.database is not None
    assert made.indices is not None
    assert numbers(made.database) != sorted(numbers(made.database)) == list(range(90))
    for name, split in made.named.items():
        assert numbers(split) == made.indices[name].tolist()
    assert made.remarks == ["retrieval: 30 queries, 30 train, 6 val, database 90"]


def test_validation_images_come_from_the_database_outside_train() -> None:
    before = own_database(n_val=0)
    made = retrieval_splits(before, SplitConfig(n_val=4))
    found = sets(made)
    assert made.val.targets.bincount().tolist() == [4, 4, 4]
    assert found["val"] < found["database"] - found["train"]
    assert found["database"] == set(range(90))
    assert made.indices is not None
    assert numbers(made.val) == made.indices["val"].tolist()
    assert made.remarks == ["retrieval: 30 queries, 30 train, 12 val (from the database), database 90"]
    with pytest.raises(RequestError, match=f"^split.n_val: 21 {NEEDED} 'a'"):
        retrieval_splits(before, SplitConfig(n_val=21))


def test_a_database_without_indices_shares_no_image() -> None:
    before = own_database()
    bare = Splits(before.train, before.val, before.test, before.classes, database=before.database)
    made = retrieval_splits(bare, SplitConfig())
    assert made.indices is not None
    places = [place for index in made.indices.values() for place in index.tolist()]
    assert sorted(places) == list(range(30 + 6 + 30 + 90))


def test_streamed_images_are_lists_of_files() -> None:
    def files(n: int, start: int) -> Split:
        names = np.array([f"{start + i}.png".encode() for i in range(n)])
        sizes = np.arange(start, start + n)
        images = ImageFiles(Path("."), names, sizes, sizes * 2, View((8, 8)), 0)
        return Split(images, torch.arange(n) % 2)

    splits = Splits(files(40, 0), files(10, 40), files(20, 1000), ["a", "b"])
    made = retrieval_splits(splits, SplitConfig(n_query=5, n_train=10, n_val=5))
    expected = [f"{i}.png" for i in range(50)] + [f"{1000 + i}.png" for i in range(20)]
    assert made.indices is not None
    for name, split in made.named.items():
        assert isinstance(split.images, ImageFiles)
        assert [found.decode() for found in split.images.names] == [
            expected[i] for i in made.indices[name].tolist()
        ]
        assert (split.images.modified == 2 * split.images.sizes).all()
        assert split.images.shape == (len(split), 3, 8, 8)
        assert len(split.digest) == 64


def test_the_real_images(folder_config: Callable[..., FolderConfig]) -> None:
    shared = Path(os.environ.get("SSTUNE_SHARED", Path(__file__).parents[2].parent / "shared"))
    root = shared / "data/cifar10.tar.xz"
    if not root.exists():
        pytest.skip(f"{root} is absent; set SSTUNE_SHARED to the folder that holds data/cifar10.tar.xz")
    config = folder_config(root)
    made = load(config, split=SplitConfig())
    assert [len(split) for split in made.named.values()] == [5_000, 1_000, 1_000, 59_000]
    assert made.test.targets.bincount().tolist() == [100] * 10
