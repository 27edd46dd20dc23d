from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sstune.backbones.cifar_resnet import CifarResNet
from sstune.composition import compose

Ask = Callable[..., Any]


def row_of(run: Path) -> Any:
    return json.loads((run / "result.json").read_text())


def only(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


class TestFromARun:
    def test_it_starts_from_the_weights_and_lists_the_ancestor(
        self, trained: Path, finished: Callable[..., Path]
    ) -> None:
        run = finished("finetune", f"init_from={trained}", "epochs=1", "rule=usf", "optimizer.lr=1e-12")
        theirs, ours = (
            torch.load(path / "model.pt", weights_only=True)["state_dict"] for path in (trained, run)
        )
        for name, value in theirs.items():
            if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
                assert torch.allclose(ours[name], value, atol=1e-9), name
        parent, row = row_of(trained), row_of(run)
        assert row["lineage"] == [{key: parent[key] for key in ("command", "identity", "config")}]
        assert row["config"]["rule"]["name"] == "usf"

    def test_backbone_dataset_and_task_are_the_parents(self, ask: Ask, trained: Path, tmp_path: Path) -> None:
        assert ask("finetune", f"init_from={trained}", "epochs=1", "threads=1", "seed=3").status == 0
        row, parent = row_of(only(tmp_path / "runs" / "finetune")), row_of(trained)
        for section in ("backbone", "dataset", "task"):
            assert row["config"][section] == parent["config"][section]
        assert row["config"]["seed"] == 3
        assert row["config"]["rule"]["name"] == "usf"
        assert row["datasets"] == parent["datasets"]

    @pytest.mark.parametrize(
        ("overrides", "said"),
        [
            (["backbone=resnet32"], "backbone: the weights in {run} are of resnet20, remove backbone="),
            (["rule=usf", "rule.include=[layer9]"], "rule.include: 'layer9' matches no module"),
            (
                ["dataset.mean=[0.1,0.2]", "dataset.std=[1,1]"],
                "dataset.mean: has 2 values, expected 1 (grey images) or 3 (colours)",
            ),
        ],
    )
    def test_what_does_not_fit_is_refused(
        self, ask: Ask, trained: Path, overrides: list[str], said: str
    ) -> None:
        answer = ask("finetune", f"init_from={trained}", *overrides)
        assert answer.status == 2
        assert answer.err.startswith(f"sstune: {said.format(run=trained)}")
        assert len(answer.errors) == 1

    def test_an_attacks_directory_is_refused(self, ask: Ask, chain: Any) -> None:
        answer = ask("finetune", f"init_from={chain.attack}")
        assert answer.status == 2
        assert answer.errors == [f"sstune: init_from: {chain.attack} is not a finished train or finetune run"]


class TestFromNothing:
    def test_the_default_parent_is_trained_first(self, chain: Any) -> None:
        row, parent = row_of(chain.finetune), row_of(chain.train)
        assert row["lineage"] == [{key: parent[key] for key in ("command", "identity", "config")}]
        default = compose("train")
        assert parent["config"]["epochs"] == default.epochs
        assert parent["config"]["optimizer"]["lr"] == default.optimizer.lr
        assert parent["config"]["rule"] == {"name": "bp"}
        assert parent["config"]["dataset"] == row["config"]["dataset"]
        assert (row["config"]["epochs"], row["config"]["optimizer"]["lr"]) == (1, 0.03)
        saved = yaml.safe_load((chain.finetune / "config.yaml").read_text())
        assert saved["init_from"] == str(chain.train)

    def test_the_lines_that_make_the_parents_have_been_done_already(self, ask: Ask, chain: Any) -> None:
        data = [word for word in chain.line if word.startswith(("dataset", "threads", "device", "out"))]
        recipe = [word for word in chain.line if word.startswith(("epochs", "batch_size", "optimizer"))]
        for line, run in (
            (["train", *data], chain.train),
            (["finetune", *data, *recipe], chain.finetune),
            (["finetune", *data, *recipe, f"init_from={chain.train}"], chain.finetune),
        ):
            answer = ask(*line)
            assert answer.status == 0
            assert answer.out.splitlines()[-1] == f"{run}: done already"


class TestFromAFile:
    @pytest.fixture
    def checkpoint(self, tmp_path: Path) -> Path:
        """As others publish them: wrapped, prefixed, without BatchNorm's counters, and for seven classes."""
        torch.manual_seed(0)
        state = CifarResNet(3, 1, 7).state_dict()
        published = {f"module.{k}": v for k, v in state.items() if not k.endswith("num_batches_tracked")}
        torch.save({"state_dict": published, "epoch": 200}, tmp_path / "published.th")
        return tmp_path / "published.th"

    def test_it_is_named_with_its_digest_and_a_new_head_is_said(
        self, ask: Ask, small: list[str], checkpoint: Path, tmp_path: Path
    ) -> None:
        answer = ask("finetune", *small, "init_from=published.th", "rule=frsf", "optimizer.lr=1e-12")
        assert answer.status == 0
        notes = ["linear.weight: new, 10x64 (the file has 7x64)", "linear.bias: new, 10 (the file has 7)"]
        assert [line.strip() for line in answer.out.splitlines()[1:3]] == notes
        run = only(tmp_path / "runs" / "finetune")
        row = row_of(run)
        digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        assert row["lineage"] == [{"file": "published.th", "sha256": digest}]
        assert row["notes"] == notes
        assert str(tmp_path) not in json.dumps(row)
        theirs = torch.load(checkpoint, weights_only=True)["state_dict"]["module.layer3.2.conv2.weight"]
        ours = torch.load(run / "model.pt", weights_only=True)["state_dict"]["layer3.2.conv2.weight"]
        assert torch.allclose(ours, theirs, atol=1e-9)

    def test_its_content_counts_and_its_place_does_not(
        self, ask: Ask, small: list[str], checkpoint: Path, tmp_path: Path
    ) -> None:
        assert ask("finetune", *small, f"init_from={checkpoint}").status == 0
        moved = checkpoint.rename(tmp_path / "moved.th")
        assert "done already" in ask("finetune", *small, f"init_from={moved}").out
        content = torch.load(moved, weights_only=True)
        content["state_dict"]["module.conv1.weight"][0] += 1
        torch.save(content, moved)
        answer = ask("finetune", *small, f"init_from={moved}")
        assert answer.status == 0
        assert "done already" not in answer.out
        assert len(list((tmp_path / "runs" / "finetune").iterdir())) == 2

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"not a checkpoint", "is not a checkpoint that can be read safely"),
            ({"a": 1}, "holds no state dict"),
            ({"conv1.weight": torch.zeros(1)}, "does not fit the backbone: missing "),
        ],
    )
    def test_what_is_no_checkpoint_of_this_backbone_is_refused(
        self, ask: Ask, small: list[str], tmp_path: Path, content: Any, said: str
    ) -> None:
        path = tmp_path / "bad.pt"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        answer = ask("finetune", *small, "init_from=bad.pt")
        assert answer.status == 2
        assert answer.err.startswith(f"sstune: init_from: bad.pt {said}")
        assert len(answer.errors) == 1
