from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from sstune import attacks, backbones, datasets, rules, tasks
from sstune.backbones.cifar_resnet import CifarResNet
from sstune.cli import main
from sstune.commands.lineage import open_source
from sstune.commands.weights import Weights
from sstune.composition import compose
from sstune.packing import unpack
from sstune.schema import Gradient

Ask = Callable[..., Any]
CPU = torch.device("cpu")
EPS = "attack.eps=[8/255,24/255]"  # the digits have 17 grey levels, 16/255 apart
FEW = ["attack.n=100", EPS, "attack.steps=3", "threads=1", "device=cpu"]
PGD = ["attack=pgd", *FEW]


def row_of(run: Path) -> Any:
    return json.loads((run / "result.json").read_text())


def outcomes(run: Path) -> dict[str, npt.NDArray[Any]]:
    """Everything but the time taken."""
    with np.load(run / "outcomes.npz") as file:
        return {name: file[name] for name in file if not name.endswith("seconds")}


def same(one: dict[str, npt.NDArray[Any]], other: dict[str, npt.NDArray[Any]]) -> bool:
    """Whether the same became of the same samples, in whichever run."""
    compared = one.keys() - {"identity"}
    return one.keys() == other.keys() and all(
        np.array_equal(one[name], other[name], equal_nan=one[name].dtype.kind == "f") for name in compared
    )


@pytest.fixture(scope="module")
def attack(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``attack(source, *overrides)``: directory of the finished attack, each line in a folder of its own."""

    @functools.cache
    def attack(source: Path, *overrides: str) -> Path:
        out = tmp_path_factory.mktemp("attack")
        assert main(["attack", f"init_from={source}", f"out={out}", *overrides]) == 0
        (run,) = (out / "attack").iterdir()
        return run

    return attack


Attack = Callable[..., Path]


class TestOfARun:
    @pytest.mark.parametrize("attack", ["pgd", "audit"])
    def test_what_is_inherited_has_to_go_with_what_is_asked_for(
        self, attack: str, finetuned: Path, ask: Ask
    ) -> None:
        """The run's rule is brsf, the command's default is not."""
        answer = ask("attack", f"init_from={finetuned}", f"attack={attack}", "attack.eot=4")
        assert answer.status == 2
        wanted = "attack.eot: averages gradients of different draws, so brsf needs attack.redraw=forward"
        assert answer.errors == [f"sstune: {wanted}"]

    def test_it_is_the_parents_network_by_the_parents_rule(self, attack: Attack, finetuned: Path) -> None:
        row, parent = row_of(attack(finetuned, *PGD)), row_of(finetuned)
        for section in ("backbone", "dataset", "task", "rule", "seed"):
            assert row["config"][section] == parent["config"][section]
        assert row["config"]["rule"]["name"] == "brsf"
        assert [ancestor["command"] for ancestor in row["lineage"]] == ["train", "finetune"]
        assert row["lineage"][-1]["identity"] == parent["identity"]
        assert "optimizer" not in row["config"]
        assert row["precision"] == "float32"
        assert row["datasets"]["test"]["digest"] == parent["datasets"]["test"]["digest"]

    def test_it_is_attacked_through_the_very_feedback_it_was_trained_with(
        self, attack: Attack, finetuned: Path
    ) -> None:
        found = outcomes(attack(finetuned, *PGD))["rule 24/255/right"]
        source = open_source(finetuned)
        config = source.config
        assert config is not None
        test, samples = datasets.load(config.dataset).test.sample(100, 0)
        method = attacks.ATTACKS["pgd"](compose("attack", PGD).attack, config.seed)
        weights, by_hand = Weights(source), {}
        for feedback in ("trained", "newly drawn"):
            network = backbones.build(config.backbone, (1, 8, 8), 10, config.dataset.mean, config.dataset.std)
            weights.load_into(network)
            rules.convert(network.backbone, config.rule, config.seed)
            if feedback == "trained":
                weights.load_feedback(network)
            task = tasks.build(config.task, 10)
            victim = attacks.Victim.of(network, task, test, samples, CPU)
            gradient_source = attacks.GradientSource(Gradient.rule, network)
            by_hand[feedback] = attacks.run_attack(
                victim, method, gradient_source, 24 / 255, 256
            ).robust.numpy()
        assert np.array_equal(found, by_hand["trained"])
        assert not np.array_equal(found, by_hand["newly drawn"])

    def test_another_rule_gives_the_same_weights_other_feedback(
        self, attack: Attack, finetuned: Path
    ) -> None:
        own, other = (attack(finetuned, *PGD, *rule) for rule in ([], ["rule=usf"]))
        assert row_of(other)["config"]["rule"]["name"] == "usf"
        assert row_of(other)["lineage"] == row_of(own)["lineage"]
        ours, theirs = outcomes(own), outcomes(other)
        for key in ("samples", "clean", "exact 8/255/right", "exact 24/255/right"):
            assert np.array_equal(ours[key], theirs[key]), key
        assert not np.array_equal(ours["rule 24/255/right"], theirs["rule 24/255/right"])

    def test_of_all_test_images_clean_is_the_parents_count(self, attack: Attack, trained: Path) -> None:
        run = attack(trained, "attack=fgsm", "attack.eps=[0]", "threads=1")
        clean, *attacked = row_of(run)["measurements"]
        (test,) = (entry for entry in row_of(trained)["measurements"] if entry["split"] == "test")
        assert {key: value for key, value in clean.items() if key != "outcomes"} == test
        assert int(unpack(clean["outcomes"], clean["n"]).sum()) == test["correct"]
        assert [entry["correct"] for entry in attacked] == [test["correct"]] * 2

    @pytest.mark.parametrize(
        "override",
        ["epochs=1", "batch_size=2", "optimizer.lr=1", "schedule=constant", "clip_norm=1", "precision=bf16"],
    )
    def test_training_settings_are_refused_by_name(self, ask: Ask, trained: Path, override: str) -> None:
        answer = ask("attack", f"init_from={trained}", override)
        assert answer.status == 2
        key = override.split("=")[0]
        assert answer.errors == [
            f"sstune: {key}: attack does not train when init_from or model.factory is given"
        ]

    def test_another_backbone_is_refused(self, ask: Ask, trained: Path) -> None:
        answer = ask("attack", f"init_from={trained}", "backbone=resnet56")
        assert answer.status == 2
        expected = f"sstune: backbone: the weights in {trained} are of resnet20, remove backbone="
        assert answer.errors == [expected]

    def test_of_a_file(self, attack: Attack, trained: Path) -> None:
        data = ["dataset.test_fraction=0.8", "dataset.val_fraction=0.2"]
        run = attack(trained / "model.pt", *PGD, *data, "rule=bp")
        assert [set(entry) for entry in row_of(run)["lineage"]] == [{"file", "sha256"}]
        assert same(outcomes(run), outcomes(attack(trained, *PGD)))

    def test_a_head_for_other_classes_is_refused(self, ask: Ask, tmp_path: Path) -> None:
        """Fine-tuning would train a new head; attacking an untrained one would mean nothing."""
        torch.save(CifarResNet(3, 1, 7).state_dict(), tmp_path / "seven.th")
        answer = ask("attack", "init_from=seven.th", "rule=bp", *PGD)
        assert answer.status == 2
        assert answer.errors == [
            "sstune: init_from: seven.th has no head for digits: "
            "linear.weight: new, 10x64 (the file has 7x64)"
        ]


class TestOfNothing:
    def test_the_whole_chain_is_made_first(self, chain: Any) -> None:
        row = row_of(chain.attack)
        assert [entry["command"] for entry in row["lineage"]] == ["train", "finetune"]
        for entry, run in zip(row["lineage"], (chain.train, chain.finetune), strict=True):
            assert entry["identity"] == row_of(run)["identity"]
        assert row["config"]["rule"] == row_of(chain.finetune)["config"]["rule"]
        assert row["measurements"][0]["n"] == 40

    def test_and_is_the_same_as_attacking_the_run_it_made(self, ask: Ask, chain: Any) -> None:
        limits = [word for word in chain.line if word.startswith(("attack.", "attack=", "out", "threads"))]
        for line in (chain.line, ["attack", f"init_from={chain.finetune}", *limits]):
            answer = ask(*line)
            assert answer.status == 0
            assert answer.out.splitlines()[-1] == f"{chain.attack}: done already"
