"""Commands on streamed images, subsets and corrupt files: what the console says and the row holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from sstune.identity import identity
from sstune.schema import RunConfig

SETTINGS = [
    "dataset=folder",
    "dataset.label=patches",
    "dataset.stream=true",
    "dataset.image_size=16",
    "dataset.crop_scale=0.5",
    "dataset.crop_padding=0",
    "backbone=mlp",
    "backbone.hidden=[16]",
    "batch_size=8",
    "epochs=2",
    "device=cpu",
    "threads=1",
]


@pytest.fixture
def patches(tmp_path: Path) -> Path:
    """Patches of two photographs as JPEG files; one file ends early."""
    root = tmp_path / "patches"
    for name in ("china", "flower"):
        image = Image.fromarray(load_sample_image(f"{name}.jpg"))
        for i, split in enumerate(["train"] * 20 + ["test"] * 5):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            image.crop((20 * i, 50, 20 * i + 60, 110)).save(root / split / name / f"{i}.jpg")
    file = root / "train/china/7.jpg"
    file.write_bytes(file.read_bytes()[:-100])
    return root


def rows(directory: Path, command: str) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in (directory / "runs" / command).glob("*/result.json")]


def test_train_and_attack_leave_out_corrupt_files_and_say_so(
    ask: Callable[..., Any], patches: Path, tmp_path: Path
) -> None:
    line = [*SETTINGS, f"dataset.root={patches}", f"dataset.cache={tmp_path / 'cache'}"]
    refused = ask("train", *line)
    assert refused.status == 2
    assert "train/china/7.jpg" in refused.err
    assert len(refused.errors) == 1
    assert rows(tmp_path, "train") == []

    answer = ask("train", *line, "dataset.skip_corrupt=true", "workers=1")
    note = "skipped 1 images that cannot be decoded: train/china/7.jpg"
    assert answer.status == 0
    assert note in answer.out
    (row,) = rows(tmp_path, "train")
    assert row["skipped"] == {"n": 1, "first": ["train/china/7.jpg"]}
    assert {name: split["n"] for name, split in row["datasets"].items()} == {
        "train": 35,
        "val": 4,
        "test": 10,
    }
    assert note in row["notes"]

    again = ask("train", *line, "dataset.skip_corrupt=true", "workers=0", "out=other")
    assert again.status == 0
    (other,) = [json.loads(file.read_text()) for file in (tmp_path / "other").glob("train/*/result.json")]
    assert other["identity"] == row["identity"]
    assert other["measurements"] == row["measurements"]

    (parent,) = (file.parent for file in (tmp_path / "runs/train").glob("*/result.json"))
    attacked = ask(
        "attack", f"init_from={parent}", "attack=fgsm", "attack.eps=[2/255]", "device=cpu", "workers=0"
    )
    assert attacked.status == 0
    assert note in attacked.out
    (row,) = rows(tmp_path, "attack")
    assert row["skipped"]["n"] == 1
    assert row["datasets"]["test"]["n"] == 10


def test_training_on_shots_says_so_in_the_row(ask: Callable[..., Any], tmp_path: Path) -> None:
    chosen = ["dataset=digits", "dataset.shots=5", "epochs=1", "batch_size=16", "device=cpu", "threads=1"]
    assert ask("train", *chosen).status == 0
    assert ask("train", *chosen, "dataset.subset_seed=1").status == 0
    assert [row["datasets"]["train"]["n"] for row in rows(tmp_path, "train")] == [50, 50]
    assert len({row["datasets"]["train"]["digest"] for row in rows(tmp_path, "train")}) == 2


def test_the_order_of_transforms_makes_another_run(complete: Callable[..., RunConfig]) -> None:
    config = complete("train", dataset="folder")
    without = identity(config, None, None)
    config.dataset.transforms = {"RandAugment": {"num_ops": 2}, "ColorJitter": None}
    one = identity(config, None, None)
    config.dataset.transforms = {"ColorJitter": None, "RandAugment": {"num_ops": 2}}
    assert len({without, one, identity(config, None, None)}) == 3
    config.dataset.transforms = {}
    assert identity(config, None, None) == without
