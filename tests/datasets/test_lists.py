"""Datasets in list files: what they load, what they refuse, and what they are known by."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made import pairs
from PIL import Image

from sstune.datasets import ImageFiles, Split, batches, earlier_fingerprint, fingerprint, load
from sstune.datasets.contents import scan
from sstune.datasets.lists import lists
from sstune.schema import ListConfig, RequestError, SplitConfig

MULTI = {"database": range(24), "train": range(6, 14), "test": range(24, 30)}
LIST_KEYS = {"database": "database_file", "train": "train_file", "test": "test_file", "val": "val_file"}


def colour(number: int) -> tuple[int, int, int]:
    return number * 8, 255 - number * 8, number


def multi_hot(number: int) -> str:
    """Three labels: even, divisible by 3, not 5; none for 5."""
    return f"{int(number % 2 == 0)} {int(number % 3 == 0)} {int(number != 5)}"


def one_hot(number: int) -> str:
    return " ".join("1" if number % 3 == label else "0" for label in range(3))


def name_of(number: int) -> str:
    return f"images/{'ab'[number % 2]}/{number:02}.png"


def write(root: Path, label: Callable[[int], str], parts: dict[str, Any]) -> None:
    for part, numbers in parts.items():
        lines = [f"{name_of(number)} {label(number)}" for number in numbers]
        (root / f"{part}.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """30 images of one colour each, with multi-label lists of them."""
    root = tmp_path / "listed"
    for number in range(30):
        path = root / name_of(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10), colour(number)).save(path)
    write(root, multi_hot, MULTI)
    return root


@pytest.fixture
def config(root: Path, tmp_path: Path) -> ListConfig:
    return ListConfig(
        name="list", label="d", mean=[0.5], std=[0.5], root=str(root), image_size=8, cache=str(tmp_path / "c")
    )


def again(config: ListConfig, split: SplitConfig | None = None) -> Any:
    """What another process loads."""
    scan.cache_clear()
    return load(config, workers=0, split=split)


def numbers(split: Split) -> list[int]:
    """The images by their colour, after decoding; their file names agree."""
    assert isinstance(split.images, ImageFiles)
    pixels = torch.cat([images for images, _ in pairs(batches(split, 7, "cpu"))])
    assert pixels.shape[1:] == (3, 8, 8)
    found = (pixels[:, 2].amax((1, 2)) * 255).round().long().tolist()
    assert [name.decode() for name in split.images.names] == [name_of(number) for number in found]
    return found


class TestLoading:
    def test_several_labels(self, config: ListConfig) -> None:
        made = lists(config)
        assert made.database is not None
        for name, expected in MULTI.items():
            split = made.named[name]
            assert numbers(split) == list(expected)
            assert split.targets.dtype == torch.float32
            rows = [" ".join(str(int(value)) for value in row) for row in split.targets.tolist()]
            assert rows == [multi_hot(number) for number in expected]
        assert made.classes == ["0", "1", "2"]
        assert len(made.val) == 0

    def test_one_label_each_are_classes(self, root: Path, config: ListConfig) -> None:
        write(root, one_hot, {**MULTI, "val": [0, 1, 2]})
        (root / "names").write_text("zero\n\none\ntwo\n")
        config.val_file, config.classes_file = "val.txt", "names"
        made = again(config)
        assert made.classes == ["zero", "one", "two"]
        assert made.test.targets.dtype == torch.int64
        assert made.test.targets.tolist() == [number % 3 for number in MULTI["test"]]
        assert numbers(made.val) == [0, 1, 2]

    def test_indices_say_which_images_are_the_same(self, root: Path, config: ListConfig) -> None:
        write(root, multi_hot, {"val": [3, 1, 4], "train": [7, 6, 9]})
        config.val_file = "val.txt"
        made = again(config)
        assert {name: index.tolist() for name, index in made.indices.items()} == {
            "train": [7, 6, 9],
            "val": [3, 1, 4],
            "test": [*range(24, 30)],
            "database": [*range(24)],
        }

    def test_training_images_may_lie_outside_the_database(self, root: Path, config: ListConfig) -> None:
        write(root, multi_hot, {"database": range(6, 20), "train": [1, 6]})
        made = again(config, SplitConfig(n_val=2))
        assert made.indices["train"].tolist() == [14, 0]

    def test_paths_are_normalised_and_may_be_absolute(self, root: Path, config: ListConfig) -> None:
        lines = [
            f"\ufeff{root}/{name_of(24)}\t{multi_hot(24)}",  # begins with a byte order mark
            "",
            f"./images//a/../a/26.png  {multi_hot(26)}  \r",
            f"images/b/27.png {multi_hot(27)}",
        ]
        (root / "test.txt").write_text("\n".join(lines))
        assert numbers(again(config).test) == [24, 26, 27]
        (root.parent / "link").symlink_to(root)
        config.root = str(root.parent / "link")
        assert numbers(again(config).test) == [24, 26, 27]

    def test_retrieval_draws_validation_images_from_the_database(self, config: ListConfig) -> None:
        made = again(config, SplitConfig(n_val=2, seed=1))
        assert sorted(numbers(made.database)) == [*range(24)] != numbers(made.database)
        assert numbers(made.train) == [*MULTI["train"]]
        assert numbers(made.test) == [*MULTI["test"]]
        assert len(made.val) == 6  # two times three labels
        assert set(numbers(made.val)) <= {*range(24)} - {*MULTI["train"]}
        assert made.val.targets.any(1).all()
        assert made.indices["database"].tolist() == numbers(made.database)
        assert made.remarks == ["retrieval: 6 queries, 8 train, 6 val (from the database), database 24"]
        other = again(config, SplitConfig(n_val=2, seed=2))
        assert numbers(other.database) != numbers(made.database)

    def test_classification_holds_out_a_part_of_train(self, root: Path, config: ListConfig) -> None:
        write(root, one_hot, MULTI)
        config.val_fraction = 0.25
        made = again(config)
        assert sorted(numbers(made.train) + numbers(made.val)) == [*MULTI["train"]]
        assert len(made.val) == 2
        for name in ("train", "val"):
            assert made.indices[name].tolist() == numbers(made.named[name])

    def test_digests_see_labels_and_order(self, root: Path, config: ListConfig) -> None:
        before = again(config).named
        write(root, lambda number: multi_hot(number)[::-1], MULTI)
        after = again(config).named
        assert {before[name].digest for name in before} & {after[name].digest for name in after} == set()
        write(root, multi_hot, {**MULTI, "database": reversed(MULTI["database"])})
        last = again(config).named
        assert last["database"].digest != before["database"].digest
        assert last["test"].digest == before["test"].digest

    def test_corrupt_images_are_left_out_when_told(self, root: Path, config: ListConfig) -> None:
        (root / name_of(25)).write_bytes(b"nothing")
        (root / name_of(6)).write_bytes((root / name_of(6)).read_bytes()[:-40])
        with pytest.raises(RequestError, match=r"images/b/25.png.*dataset.skip_corrupt=true"):
            numbers(again(config).test)
        config.skip_corrupt = True
        made = again(config)
        assert numbers(made.test) == [24, 26, 27, 28, 29]
        assert made.skipped == ["images/a/06.png", "images/b/25.png"]
        assert 6 not in numbers(made.database)
        (root / "test.txt").write_text(f"{name_of(25)} {multi_hot(25)[:-1]}1\n")
        with pytest.raises(RequestError, match=r"^dataset.test_file: no image of .*test.txt can be decoded$"):
            again(config)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("test", "images/a/24.png 1 1 1\nx/31.png 1 0 1", "line 2 of test.txt: x/31.png is missing in"),
        ("test", "../24.png 1 0 1", "line 1 of test.txt: ../24.png is not below"),
        ("train", "/elsewhere/24.png 1 0 1", "line 1 of train.txt: /elsewhere/24.png is not below"),
        ("train", "database.txt 1 0 1", "line 1 of train.txt: database.txt has no suffix of an image"),
        ("database", "images/a/00.png 1 1 0\nimages/b/01.png 1 0", "line 2 of database.txt: 2 labels, exp"),
        ("database", "images/a/00.png", "line 1 of database.txt: 0 labels, expected 0 or 1 for each class"),
        ("test", "images/a/24.png 1 0", "line 1 of test.txt: 2 labels, expected 3 as in the database"),
        ("test", "images/a/24.png 1 2 0", "line 1 of test.txt: the label '2' is not 0 or 1"),
        ("test", "my image.png 1 0 1", "line 1 of test.txt: my has no suffix"),
        ("test", "\n\nimages/a/24.png 0 0 0", "line 3 of test.txt: images/a/24.png has no label; such"),
        ("train", "images/a/06.png 0 0 0", "line 1 of train.txt: images/a/06.png has no label; such images"),
        (
            "train",
            "images/a/06.png 1 0 1",
            "line 1 of train.txt: images/a/06.png has other labels in line 7 of database.txt",
        ),
        ("test", "\n \n", "/test.txt is empty, expected lines of a path and labels"),
        (
            "test",
            "images/a/24.png 1 0 1\nimages/a/./24.png 1 0 1",
            "line 2 of test.txt: images/a/24.png is already in line 1 of test.txt",
        ),
        (
            "test",
            f"images/a/02.png {multi_hot(2)}",
            "images/a/02.png is also in line 3 of database.txt; a query must not find itself",
        ),
        ("classes", "a\nb\n", "classes.txt has 2 names, expected 3"),
        ("test", None, "cannot read"),
    ],
)  # fmt: skip
def test_wrong_files_are_one_line_with_file_and_line(
    root: Path, config: ListConfig, file: str, text: str | None, message: str
) -> None:
    if text is None:
        (root / f"{file}.txt").unlink()
    else:
        (root / f"{file}.txt").write_text(text)
    if file == "classes":
        config.classes_file = "classes.txt"
    with pytest.raises(RequestError) as caught:
        again(config)
    (problem,) = caught.value.problems
    assert problem.startswith(f"dataset.{file}_file: ")
    assert message in problem


@pytest.mark.parametrize(("part", "other"), [("train", "test"), ("train", "val"), ("val", "test")])
def test_other_parts_that_share_an_image_are_refused(
    root: Path, config: ListConfig, part: str, other: str
) -> None:
    parts = {"database": [1], "train": [2], "val": [3], "test": [4]}
    write(root, multi_hot, {**parts, part: [7, 8], other: [9, 8]})
    config.val_file = "val.txt"
    with pytest.raises(RequestError) as caught:
        again(config)
    where = (
        f"dataset.{other}_file: line 2 of {other}.txt: images/a/08.png is also in line 2 of {part}.txt; a "
    )
    assert str(caught.value).startswith(where)


def test_a_root_that_is_no_directory(config: ListConfig, root: Path) -> None:
    config.root = str(root / "test.txt")
    with pytest.raises(RequestError, match=r"^dataset.root: .*test.txt is not a directory$"):
        lists(config)


def test_no_image_can_be_decoded(root: Path, config: ListConfig) -> None:
    for file in root.rglob("*.png"):
        file.write_bytes(b"nothing")
    config.skip_corrupt = True
    with pytest.raises(
        RequestError, match=r"^dataset.database_file: no image of .*database.txt can be decoded$"
    ):
        again(config)


def test_a_size_is_needed(config: ListConfig) -> None:
    config.image_size = None
    with pytest.raises(RequestError, match=r"^dataset.image_size: must be set"):
        again(config)


class TestFingerprint:
    def found(self, config: ListConfig) -> str:
        scan.cache_clear()
        found = fingerprint(config)
        assert found is not None
        return found

    def test_is_that_of_images_and_lists(self, root: Path, config: ListConfig) -> None:
        before = self.found(config)
        assert self.found(config) == before
        assert earlier_fingerprint(config) is None
        text = (root / "test.txt").read_text()
        (root / "test.txt").write_text(text + f"{name_of(0)} 1 1 1\n")
        assert self.found(config) != before
        (root / "test.txt").write_text(text)
        assert self.found(config) == before
        Image.new("RGB", (12, 10)).save(root / name_of(3))
        assert self.found(config) != before

    def test_distinguishes_what_a_file_lists(self, root: Path, config: ListConfig) -> None:
        (root / "other.txt").write_text("a\n")
        config.val_file = "other.txt"
        as_val = self.found(config)
        config.val_file, config.classes_file = None, "other.txt"
        assert self.found(config) != as_val

    def test_moves_with_the_files(self, root: Path, config: ListConfig, tmp_path: Path) -> None:
        before = self.found(config)
        root.rename(tmp_path / "moved")
        config.root = str(tmp_path / "moved")
        assert self.found(config) == before

    def test_an_absent_list_is_one_line(self, root: Path, config: ListConfig) -> None:
        (root / "train.txt").unlink()
        with pytest.raises(RequestError, match=r"^dataset.train_file: cannot read .*train.txt: No such file"):
            self.found(config)


def test_a_run_on_classes_in_lists(ask: Callable[..., Any], root: Path, tmp_path: Path) -> None:
    write(root, one_hot, MULTI)
    scan.cache_clear()
    line = [
        "dataset=list",
        f"dataset.root={root}",
        "dataset.label=d",
        "dataset.image_size=8",
        "dataset.flip=false",
    ]
    line += [
        f"dataset.cache={tmp_path / 'c'}",
        "dataset.val_fraction=0.25",
        "backbone=mlp",
        "backbone.hidden=[4]",
    ]
    line += ["epochs=1", "batch_size=4", "device=cpu", "threads=1", "workers=0"]  # fmt: skip
    answer = ask("train", *line)
    assert answer.status == 0
    (path,) = (tmp_path / "runs/train").glob("*/result.json")
    row = json.loads(path.read_text())
    assert {name: part["n"] for name, part in row["datasets"].items()} == {
        "train": 6, "val": 2, "test": 6, "database": 24
    }  # fmt: skip
    attacked = ask(
        "attack", f"init_from={path.parent}", "attack=fgsm", "attack.eps=[2/255]", "device=cpu", "workers=0"
    )
    assert attacked.status == 0
    assert "images are not those" not in attacked.out
    (path,) = (tmp_path / "runs/attack").glob("*/result.json")
    assert json.loads(path.read_text())["datasets"]["database"] == row["datasets"]["database"]


def test_images_are_not_copied_into_memory(config: ListConfig) -> None:
    made = lists(config)
    assert all(isinstance(split.images, ImageFiles) for split in made.named.values())
    assert isinstance(made.train.images, ImageFiles)
    assert made.train.images.names.dtype == np.dtype(f"S{len(name_of(0))}")
