from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sstune import backbones, rules
from sstune.commands import execute
from sstune.commands.lineage import Source, check_channels, default_parent, inherit, open_source, resolve_run
from sstune.commands.weights import Weights
from sstune.composition import Request, compose, request
from sstune.inheritance import INHERITED
from sstune.runs import Run
from sstune.schema import (
    BackboneConfig,
    ClassificationConfig,
    DigitsConfig,
    RequestError,
    RuleConfig,
    RunConfig,
    Scale,
)

Complete = Callable[..., RunConfig]


class TestOpen:
    def test_a_run(self, finetuned: Path) -> None:
        source = open_source(finetuned)
        row = json.loads((finetuned / "result.json").read_text())
        assert source.path == finetuned / "model.pt"
        assert source.config is not None
        assert source.config.rule.name == "brsf"
        ancestor = {key: row[key] for key in ("command", "identity", "config")}
        assert source.lineage == [*row["lineage"], ancestor]

    def test_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "a.pt"
        path.write_bytes(b"content")
        source = open_source(path)
        assert source.config is None
        assert source.lineage == [{"file": "a.pt", "sha256": hashlib.sha256(b"content").hexdigest()}]

    @pytest.mark.parametrize("left", [[], ["model.pt"], ["result.json"]])
    def test_an_unfinished_run_is_refused(self, trained: Path, tmp_path: Path, left: list[str]) -> None:
        for name in left:
            (tmp_path / name).write_bytes((trained / name).read_bytes())
        with pytest.raises(RequestError, match=r"init_from: .* is not a finished train or finetune run"):
            open_source(tmp_path)


def flipped(path: Path, at: bytes) -> None:
    """One bit is another, where ``at`` begins."""
    content = bytearray(path.read_bytes())
    content[content.index(at)] ^= 1
    path.write_bytes(content)


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def text(path: Path) -> None:
    path.write_text("- what?")


def weight(path: Path) -> None:
    first = next(iter(torch.load(path, weights_only=True)["state_dict"].values()))
    flipped(path, first.numpy().tobytes()[:24])


def key(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    del content["settled"]
    torch.save(content, path)


class TestDamaged:
    """One line that names the file and what to do, before anything is made."""

    @pytest.mark.parametrize(
        ("name", "damage"),
        [
            *(
                (name, each)
                for name in ("model.pt", "config.yaml", "result.json")
                for each in (half, empty, text)
            ),
            ("config.yaml", directory),
            ("result.json", directory),
            ("model.pt", weight),
            ("model.pt", key),
            ("config.yaml", lambda path: flipped(path, b"0.2\n")),  # val_fraction
            ("config.yaml", lambda path: flipped(path, b"resnet20")),
            ("config.yaml", lambda path: flipped(path, b"digits")),
            ("result.json", lambda path: flipped(path, b'"identity": ')),
            ("result.json", lambda path: flipped(path, b'lineage"')),
        ],
    )
    def test_a_file_of_a_source_is_named(
        self,
        ask: Callable[..., Any],
        trained: Path,
        tmp_path: Path,
        name: str,
        damage: Callable[[Path], None],
    ) -> None:
        source = tmp_path / "source"
        shutil.copytree(trained, source)
        damage(source / name)
        answer = ask("finetune", f"init_from={source}", "epochs=1", "threads=1", "device=cpu")
        assert (answer.status, len(answer.errors)) == (2, 1), answer.err
        assert str(source / name) in answer.err
        assert answer.err.endswith("; delete or rename it, and repeat that run\n")
        assert os.listdir(tmp_path) == ["source"]

    @pytest.mark.parametrize("damage", [None, weight])
    def test_a_row_of_an_earlier_version_has_no_digest(
        self, trained: Path, tmp_path: Path, damage: Callable[[Path], None] | None
    ) -> None:
        """Its weights are compared with the checksums of the zip file that they are in."""
        source = tmp_path / "source"
        shutil.copytree(trained, source)
        row = json.loads((source / "result.json").read_text())
        assert row.pop("model_sha256") == hashlib.sha256((source / "model.pt").read_bytes()).hexdigest()
        (source / "result.json").write_text(json.dumps(row))
        if damage is None:
            assert open_source(source).path == source / "model.pt"
        else:
            damage(source / "model.pt")
            with pytest.raises(RequestError, match=r"model.pt is damaged \(wrong checksum of archive/data/"):
                open_source(source)


class TestLoad:
    @pytest.fixture
    def network(self) -> backbones.Network:
        torch.manual_seed(1)
        return backbones.build(BackboneConfig("resnet20"), (1, 8, 8), 10, [0.3], [0.4])

    def test_weights_and_feedback_are_those_of_the_run(
        self, finetuned: Path, network: backbones.Network
    ) -> None:
        source = open_source(finetuned)
        assert source.config is not None
        weights = Weights(source)
        assert weights.load_into(network) == []
        rules.convert(network.backbone, source.config.rule, seed=7)
        saved = torch.load(finetuned / "model.pt", weights_only=True)
        state = network.backbone.state_dict()
        assert not torch.equal(
            state["conv1.feedback.magnitude"], saved["feedback"]["conv1.feedback.magnitude"]
        )
        weights.load_feedback(network)
        state = network.backbone.state_dict()
        for name, value in {**saved["state_dict"], **saved["feedback"]}.items():
            assert (
                torch.equal(state[name], value) if isinstance(value, torch.Tensor) else state[name] == value
            )

    def test_the_file_is_read_once(
        self, finetuned: Path, network: backbones.Network, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source, read, real = open_source(finetuned), [], torch.load
        assert source.config is not None

        def load(path: Path, **options: Any) -> Any:
            read.append(path)
            return real(path, **options)

        monkeypatch.setattr(torch, "load", load)
        weights = Weights(source)
        weights.resolved(source.config.backbone)
        weights.load_into(network)
        rules.convert(network.backbone, source.config.rule, seed=7)
        weights.load_feedback(network)
        assert read == [finetuned / "model.pt"]

    def test_weights_alone_leave_the_feedback_as_it_was_drawn(
        self, finetuned: Path, network: backbones.Network
    ) -> None:
        rule = RuleConfig(name="frsf", scale=Scale.weight_rms)
        Weights(open_source(finetuned)).load_into(network)
        rules.convert(network.backbone, rule, seed=0)
        saved = torch.load(finetuned / "model.pt", weights_only=True)["feedback"]
        first = network.backbone.state_dict()["conv1.feedback.magnitude"]
        assert not torch.equal(first, saved["conv1.feedback.magnitude"])  # brsf has drawn since


class TestInherit:
    @pytest.mark.parametrize("explicit", [set(), {"rule"}, {"dataset", "seed"}, {"epochs", "attack"}])
    def test_each_section_is_the_parents_unless_set(
        self, trained: Path, complete: Complete, explicit: set[str]
    ) -> None:
        source = open_source(trained)
        own = complete(
            "attack", dataset="digits", rule="plain", seed=9, task="classification", backbone="plain"
        )
        own = replace(
            own,
            dataset=DigitsConfig(name="digits", label="mine", mean=[0.5], std=[0.5]),
            task=ClassificationConfig(name="classification", label_smoothing=0.5),
        )
        result = inherit(Request(own, frozenset(explicit)), source, INHERITED["attack"])
        for item in fields(RunConfig):
            theirs = item.name in INHERITED["attack"] and item.name not in explicit
            expected = getattr(source.config if theirs else own, item.name)
            assert getattr(result, item.name) == expected, item.name
        assert own.seed == 9  # the request itself is not changed

    def test_single_keys_change_the_runs_section(self, finetuned: Path, complete: Complete) -> None:
        source = open_source(finetuned)
        assert source.config is not None
        own = replace(complete("attack", rule="plain"), seed=5)
        own.rule.scale = Scale.unit
        result = inherit(Request(own, frozenset({"rule.scale"})), source, INHERITED["attack"])
        assert result.rule == replace(source.config.rule, scale=Scale.unit)
        assert result.rule.name == "brsf"
        assert result.seed == source.config.seed

    def test_a_key_the_run_has_not_is_refused(self, trained: Path, complete: Complete) -> None:
        own = Request(complete("attack", rule="brsf"), frozenset({"rule.redraw"}))
        with pytest.raises(RequestError, match=r"rule\.redraw: the run's rule has no such key; add rule="):
            inherit(own, open_source(trained), INHERITED["attack"])

    def test_a_file_has_nothing_to_inherit(self, trained: Path, complete: Complete) -> None:
        config = complete("attack")
        assert inherit(Request(config), open_source(trained / "model.pt"), INHERITED["attack"]) == config

    def test_another_backbone_is_refused(self, trained: Path, complete: Complete) -> None:
        config = replace(complete("attack"), backbone=BackboneConfig(name="resnet32"))
        with pytest.raises(RequestError, match="are of resnet20, remove backbone="):
            inherit(Request(config, frozenset({"backbone"})), open_source(trained), INHERITED["attack"])
        inherited = inherit(Request(config), open_source(trained), INHERITED["attack"])
        assert inherited.backbone.name == "resnet20"


class TestDefaultParent:
    OVERRIDES = (
        "backbone=resnet32",
        "dataset.flip=true",
        "seed=4",
        "out=elsewhere",
        "threads=2",
        "force=true",
    )

    def test_of_finetune_is_the_default_training_of_the_same_data_and_network(self) -> None:
        config = compose("finetune", [*self.OVERRIDES, "epochs=9", "rule=frsf", "attack.n=3"])
        shared = [override for override in self.OVERRIDES if not override.startswith("force")]
        assert default_parent(Request(config)) == Request(compose("train", shared))

    def test_of_attack_is_the_finetuning_of_the_same_settings(self) -> None:
        overrides = [*self.OVERRIDES, "epochs=9", "rule=frsf", "attack.n=3"]
        expected = replace(compose("finetune", overrides), force=False)
        explicit = frozenset({"rule"})
        assert default_parent(Request(compose("attack", overrides), explicit)) == Request(expected, explicit)


class TestResolve:
    """The run that is foreseen is the run that is made."""

    @staticmethod
    def plan(command: str, overrides: list[str]) -> Run | None:
        return resolve_run(request(command, overrides))

    def test_is_what_each_line_of_a_chain_made(self, chain: Any) -> None:
        data = [word for word in chain.line if word.startswith(("dataset", "threads", "device", "out"))]
        recipe = [word for word in chain.line if word.startswith(("epochs", "batch_size", "optimizer"))]
        limits = [word for word in chain.line if word.startswith("attack.") or word == "attack=fgsm"]
        out = [word for word in data if word.startswith("out")]
        for command, overrides, expected in (
            ("train", data, chain.train),
            ("finetune", [*data, *recipe], chain.finetune),
            ("finetune", [*recipe, *out, f"init_from={chain.train}"], chain.finetune),
            ("attack", chain.line[1:], chain.attack),
            ("attack", [*limits, *out, f"init_from={chain.finetune}"], chain.attack),
        ):
            run = self.plan(command, overrides)
            assert run is not None
            assert (run.directory, run.result() is not None) == (expected, True)

    @pytest.mark.parametrize(
        ("command", "overrides"),
        [
            ("train", ["seed=1", "rule=usf"]),
            ("finetune", ["rule=frsf", "seed=2"]),
            ("finetune", ["init_from=TRAIN", "task.label_smoothing=0.1"]),
            ("finetune", ["init_from=FILE", "rule=brsf"]),
            ("attack", ["init_from=TRAIN", "rule=usf", "attack=fgsm", "attack.n=5", "attack.eps=[8/255]"]),
        ],
    )
    def test_is_the_run_that_is_then_made(
        self, trained: Path, tmp_path: Path, command: str, overrides: list[str]
    ) -> None:
        names = {"TRAIN": str(trained), "FILE": str(trained / "model.pt")}
        small = ["dataset.test_fraction=0.9", "threads=1", "device=cpu", f"out={tmp_path}"]
        small += [] if command == "attack" else ["epochs=1"]
        small = small[1:] if "init_from=TRAIN" in overrides else small
        line = [*small, *(re.sub("TRAIN|FILE", lambda found: names[found[0]], each) for each in overrides)]
        config = compose(command, line)
        before = self.plan(command, line)
        run = execute(Request.of(config, line))
        after = self.plan(command, line)
        assert after is not None
        assert (after.directory, after.identity, after.config) == (run.directory, run.identity, run.config)
        if command == "finetune" and config.init_from is None:
            assert before is None
        else:
            assert before is not None
            assert (before.directory, before.identity) == (run.directory, run.identity)

    @pytest.mark.parametrize("command", ["finetune", "attack"])
    def test_is_unknown_until_the_parent_is_made(self, tmp_path: Path, command: str) -> None:
        assert self.plan(command, [f"out={tmp_path}"]) is None
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("made_for", "given", "goes"),
    [
        ("dataset=cifar10", ["dataset=cifar100"], True),
        (
            "dataset=cifar10",
            ["dataset=cifar100", "dataset.mean=[0.5]", "dataset.std=[0.5]"],
            True,
        ),  # for all channels
        (
            "dataset=digits",
            ["dataset=cifar10", "dataset.mean=[0.5]", "dataset.std=[0.5]"],
            True,
        ),  # not known unread
        ("dataset=digits", ["dataset=mnist"], True),
        ("dataset=digits", ["dataset=cifar10"], False),
        ("dataset=svhn", ["dataset=fashion_mnist"], False),
    ],
)
def test_images_of_other_channels_are_refused_where_that_is_sure(
    made_for: str, given: list[str], goes: bool
) -> None:
    source = Source(Path("run/model.pt"), [], compose("train", [made_for]))
    config = compose("finetune", given)
    if goes:
        check_channels(config, source)
        return
    with pytest.raises(RequestError, match=r"^dataset: .* has [13]-channel images, the network of run takes"):
        check_channels(config, source)
