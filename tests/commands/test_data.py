"""Runs whose images are not those that they began with, or not those that their weights have learnt from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils import Bunch

from sstune.datasets.contents import scan
from sstune.runs import RECORD

Ask = Callable[..., Any]
SMALL = ["dataset.test_fraction=0.8", "dataset.val_fraction=0.2", "threads=1", "device=cpu"]
TINY = [*SMALL, "backbone=mlp", "backbone.hidden=[4]", "batch_size=64"]


@pytest.fixture
def another_version(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """``another_version()``: from now on scikit-learn's digits have one image mirrored."""
    import sklearn.datasets

    load_digits = sklearn.datasets.load_digits

    def changed() -> Bunch:
        bunch = load_digits()
        bunch.images = np.concatenate([bunch.images[:-1], bunch.images[-1:, ::-1]])
        return bunch

    return lambda: monkeypatch.setattr(sklearn.datasets, "load_digits", changed)


def row_of(tmp_path: Path, command: str) -> dict[str, Any]:
    (path,) = (tmp_path / "runs" / command).glob("*/result.json")
    row: dict[str, Any] = json.loads(path.read_text())
    return row


def test_training_goes_on_with_the_same_images_and_not_with_others(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["train", *TINY, "epochs=2"]
    monkeypatch.setattr("sstune.commands.train.write_model", lambda *_: 1 / 0)  # trained, then cut short
    assert ask(*line).status == 1
    (run,) = (tmp_path / "runs/train").iterdir()
    state = torch.load(run / "checkpoint.pt")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)

    assert "resuming" in ask(*line).out
    (run / "result.json").unlink()
    torch.save(state, run / "checkpoint.pt")
    (run / RECORD).write_text("{}")
    answer = ask(*line)
    assert "checkpoint.pt was saved on other images; renamed to previous.checkpoint.pt" in answer.out
    assert "resuming" not in answer.out
    assert not (run / RECORD).exists()  # finished: the row says it


def test_the_images_of_a_run_are_written_down_while_it_works(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, another_version: Callable[[], None]
) -> None:
    line = ["train", *TINY, "epochs=1"]
    monkeypatch.setattr("sstune.commands.train.write_model", lambda *_: 1 / 0)
    assert ask(*line).status == 1
    another_version()
    answer = ask(*line)
    assert "renamed to previous.checkpoint.pt" in answer.out
    (run,) = (tmp_path / "runs/train").iterdir()
    assert (run / "previous.checkpoint.pt").exists()
    said = json.loads((run / RECORD).read_text())
    assert {name: part["n"] for name, part in said.items()} == {"train": 287, "val": 72, "test": 1438}


@pytest.mark.parametrize("command", ["finetune", "attack"])
def test_a_descendant_on_other_images_says_so(
    command: str, ask: Ask, tmp_path: Path, another_version: Callable[[], None]
) -> None:
    assert ask("train", *TINY, "epochs=1").status == 0
    (run,) = (tmp_path / "runs/train").iterdir()
    more = ["attack.n=5", "attack.eps=[8/255]"] if command == "attack" else ["epochs=1", "batch_size=64"]
    line = [command, f"init_from={run}", *SMALL[2:], *more]
    remark = f"images are not those of {run.name}"
    assert remark not in ask(*line).out
    assert row_of(tmp_path, command)["notes"] == []
    another_version()
    answer = ask(*line, "force=true")
    assert answer.status == 0
    assert remark in answer.out
    assert [note for note in row_of(tmp_path, command)["notes"] if remark in note]


def test_other_splits_that_were_asked_for_are_no_remark(ask: Ask, tmp_path: Path) -> None:
    assert ask("train", *TINY, "epochs=1").status == 0
    (run,) = (tmp_path / "runs/train").iterdir()
    line = ["finetune", f"init_from={run}", *SMALL[2:], "epochs=1", "batch_size=64"]
    for change in ("dataset.test_fraction=0.7", "dataset.train_n=100", "dataset.flip=true"):
        answer = ask(*line, change)
        assert answer.status == 0
        assert "images are not those" not in answer.out


def test_equal_names_and_sizes_do_not_make_equal_images(ask: Ask, tmp_path: Path) -> None:
    for split, n in (("train", 6), ("test", 2)):
        for label, name in enumerate(("one", "two")):
            (tmp_path / "tree" / split / name).mkdir(parents=True)
            for i in range(n):
                image = bytes([100 * label + i] * 64)
                (tmp_path / "tree" / split / name / f"{i}.pgm").write_bytes(b"P5 8 8 255\n" + image)
    line = ["train", "dataset=folder", "dataset.label=d", "dataset.root=tree", "dataset.cache=cache"]
    line += [*TINY[2:], "epochs=1", "dataset.mean=[0.5]", "dataset.std=[0.25]"]
    assert ask(*line).status == 0
    assert "done already" in ask(*line).out
    image = tmp_path / "tree/train/one/0.pgm"
    image.write_bytes(b"P5 8 8 255\n" + bytes([200] * 64))
    scan.cache_clear()  # as in another process
    assert "done already" not in ask(*line).out
    assert len(list((tmp_path / "runs/train").iterdir())) == 2
