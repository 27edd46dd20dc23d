from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import torch

from sstune.backbones.cifar_resnet import CifarResNet

Finished = Callable[..., Path]


def test_the_model_is_a_plain_state_dict_that_others_can_load(trained: Path) -> None:
    content = torch.load(trained / "model.pt", weights_only=True)
    assert set(content) == {"state_dict", "feedback", "settled"}
    CifarResNet(3, 1, 10).load_state_dict(content["state_dict"], strict=True)
    assert content["feedback"] == {}
    assert all(value.is_contiguous() for value in content["state_dict"].values())


def test_the_feedback_lies_beside_the_weights(finetuned: Path) -> None:
    content = torch.load(finetuned / "model.pt", weights_only=True)
    CifarResNet(3, 1, 10).load_state_dict(content["state_dict"], strict=True)
    magnitudes = {name: value for name, value in content["feedback"].items() if name.endswith(".magnitude")}
    assert len(magnitudes) == 20
    for name, value in magnitudes.items():
        assert value.shape == content["state_dict"][name.replace("feedback.magnitude", "weight")].shape


def test_history_and_alignment_have_a_line_per_epoch_and_layer(trained: Path, finetuned: Path) -> None:
    with (trained / "history.csv").open() as file:
        history = list(csv.DictReader(file))
    assert [line["epoch"] for line in history] == ["1", "2", "3", "4"]
    assert {line["angle"] for line in history} == {"nan"}
    assert not (trained / "alignment.csv").exists()
    with (finetuned / "alignment.csv").open() as file:
        alignment = list(csv.DictReader(file))
    assert len(alignment) == 20
    assert {line["epoch"] for line in alignment} == {"1"}
    assert {line["sign_agreement"] for line in alignment} == {"1.0"}
    assert all(0 < float(line["angle"]) < 90 for line in alignment)


def test_only_what_belongs_there_is_left_in_the_directory(trained: Path, finetuned: Path) -> None:
    left = {"config.yaml", "history.csv", "lock", "model.pt", "result.json"}
    assert {path.name for path in trained.iterdir()} == left
    assert {path.name for path in finetuned.iterdir()} == {*left, "alignment.csv"}


def test_a_rule_may_train_from_scratch(finished: Finished, small: list[str]) -> None:
    run = finished("train", *small, "rule=frsf", "rule.scale=xavier", "rule.exclude=[head]")
    row = json.loads((run / "result.json").read_text())
    assert row["config"]["rule"] == {"name": "frsf", "scale": "xavier", "include": ["*"], "exclude": ["head"]}
    assert len(row["layers"]["feedback"]) == 19
    assert row["layers"]["exact"]["linear"] == "Linear"
    assert row["lineage"] == []


def test_the_seed_changes_the_weights_and_nothing_else_does(finished: Finished, small: list[str]) -> None:
    def weight(*overrides: str) -> torch.Tensor:
        run = finished("train", *small, *overrides)
        value: torch.Tensor = torch.load(run / "model.pt", weights_only=True)["state_dict"]["conv1.weight"]
        return value

    first = weight()
    assert not torch.equal(first, weight("seed=1"))
    assert torch.equal(first, weight("task.label_smoothing=0", "epochs=1"))
