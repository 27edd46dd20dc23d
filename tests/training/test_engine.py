from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
import torch._dynamo.utils
import torch.nn.functional as F
import yaml
from stopping import StopAfter
from torch import nn

import sstune
from sstune import backbones, datasets, rules, tasks
from sstune.cli import main
from sstune.commands.train import fit_network
from sstune.composition import compose, restore
from sstune.datasets import Loader
from sstune.interrupt import StopFlag, Stopped
from sstune.runs import Run
from sstune.schema import MultistepConfig, RunConfig
from sstune.training import Learner, Progress, Trainer, build_optimizer, build_schedule

pytestmark = pytest.mark.usefixtures("one_thread")  # bit-equality holds for one number of threads

CPU = torch.device("cpu")
# 287 images: six steps, the last one on a smaller batch.
SHORT = ["epochs=3", "batch_size=50", "dataset.flip=true", "dataset.crop_padding=1"]
STEPS = 6
RULES = {
    "bp": ["rule=bp"],
    "usf": ["rule=usf"],
    "frsf": ["rule=frsf"],
    "brsf by step": ["rule=brsf", "rule.redraw=step"],
    "brsf by forward": ["rule=brsf", "rule.redraw=forward"],
    "dfa": ["rule=dfa"],
    "kp": ["rule=kp", "rule.start=random"],
    "wm": ["rule=wm"],
    "pfa": ["rule=pfa", "rule.start=random"],
    "pfa, R kept": ["rule=pfa", "rule.start=random", "rule.closed_form=false", "rule.expansion=2"],
    "adamw, bf16": ["rule=usf", "optimizer=adamw", "precision=bf16"],
    "ema": ["rule=brsf", "ema=0.8"],
    "ema, drawing": ["rule=brsf", "rule.redraw=forward", "ema=0.8"],
    "accumulate": ["rule=brsf", "accumulate=3", "clip_norm=1"],
    "adversarial": ["rule=brsf", "rule.redraw=forward", "adversary.attack=pgd2", "accumulate=2"],
    "freeze": ["rule=usf", "optimizer.freeze=[stem,layer1]"],
    "lr_factors": ["rule=kp", "rule.start=random", "optimizer.lr_factors={head:4,layer1:0.1}"],
}


@pytest.fixture(scope="module")
def short() -> list[str]:
    return ["dataset.test_fraction=0.8", "dataset.val_fraction=0.2", "threads=1", "device=cpu", *SHORT]


def work(config: RunConfig, out: Path, stop: StopFlag | None = None) -> dict[str, Any]:
    run = Run(replace(config, out=str(out)), [], None)
    run.directory.mkdir(parents=True, exist_ok=True)
    return fit_network(run, None, CPU, StopFlag() if stop is None else stop)


def directory(out: Path) -> Path:
    (found,) = out.glob("*/*")
    return found


def outcome(run: Path) -> dict[str, Any]:
    """What training left, but for times: the model bit by bit, and each epoch's figures."""
    model = torch.load(run / "model.pt", weights_only=True)
    tables = {}
    for name in ("history", "alignment"):
        if (run / f"{name}.csv").exists():
            lines = list(csv.DictReader((run / f"{name}.csv").open()))
            tables[name] = [{key: line[key] for key in line if key != "seconds"} for line in lines]
    return {
        "model": {
            f"{part} {name}": value.numpy().tobytes() if isinstance(value, torch.Tensor) else value
            for part, state in model.items()
            for name, value in state.items()
        },
        **tables,
    }


class TestInterrupted:
    @pytest.mark.parametrize("name", RULES)
    def test_resumed_training_is_bit_equal_to_uninterrupted(
        self, short: list[str], name: str, tmp_path: Path
    ) -> None:
        config = compose("train", [*short, *RULES[name]])
        whole = work(config, tmp_path / "whole")
        # in mid-epoch; then across an epoch's end; then on an epoch's last step, which ends the epoch first
        for steps, at in ((2, (0, 2)), (STEPS, (1, 2)), (STEPS - 2, (2, 1))):
            with pytest.raises(Stopped) as caught:
                work(config, tmp_path / "resumed", StopAfter(steps))
            assert caught.value.code == 143
            state = torch.load(directory(tmp_path / "resumed") / "checkpoint.pt", weights_only=True)
            assert (state["progress"]["epoch"], state["progress"]["step"]) == at
        resumed = work(config, tmp_path / "resumed")
        assert resumed["measurements"] == whole["measurements"]
        assert resumed["epoch"] == whole["epoch"]
        expected = outcome(directory(tmp_path / "whole"))
        assert outcome(directory(tmp_path / "resumed")) == expected
        assert len(expected["history"]) == 3
        assert ("alignment" in expected) == (name != "bp")

    def test_killed_between_the_last_checkpoint_and_its_tables(
        self, short: list[str], tmp_path: Path
    ) -> None:
        config = compose("train", [*short, "rule=usf"])
        work(config, tmp_path)
        run = directory(tmp_path)
        before = outcome(run)
        for name in ("history.csv", "alignment.csv", "model.pt"):
            (run / name).unlink()
        stop = StopAfter(1)
        work(config, tmp_path, stop)
        assert stop.looks == 1  # never looked at: no step was made again
        assert outcome(run) == before


@pytest.fixture(scope="module")
def line(short: list[str]) -> list[str]:
    return ["train", *short, "rule=brsf"]


@pytest.fixture(scope="module")
def whole(line: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run of ``line``."""
    out = tmp_path_factory.mktemp("whole")
    assert main([*line, f"out={out}"]) == 0
    return directory(out)


class TestProcesses:
    """Real processes, real signals."""

    def test_killed_at_several_moments_and_run_again(
        self, line: list[str], whole: Path, tmp_path: Path
    ) -> None:
        run = tmp_path / "runs" / "train" / whole.name

        def epochs_written(n: int) -> Callable[[], bool]:
            return lambda: (
                (run / "history.csv").exists() and len((run / "history.csv").open().readlines()) > n
            )

        killed = 0
        for moment in (
            (run / "config.yaml").exists,
            (run / "checkpoint.pt").exists,
            epochs_written(2),
            epochs_written(3),  # on a busy machine the run may end before it is killed
        ):
            process = processes.start(line, tmp_path, tmp_path / "output")
            processes.until(moment, process)
            process.kill()
            killed += processes.wait(process) == -signal.SIGKILL
            if (run / "checkpoint.pt").exists():
                torch.load(run / "checkpoint.pt", weights_only=True)
        assert killed >= 2
        assert processes.wait(processes.start(line, tmp_path, tmp_path / "output")) == 0
        assert outcome(run) == outcome(whole)
        assert "resuming in epoch" in (tmp_path / "output").read_text()
        assert not (run / "checkpoint.pt").exists()

    def test_killed_in_mid_epoch_it_goes_on_from_the_periodic_checkpoint(
        self, line: list[str], whole: Path, tmp_path: Path
    ) -> None:
        run = tmp_path / "runs" / "train" / whole.name
        every = {"sstune.training.engine.SAVE_EVERY": 0.0}
        process = processes.start(line, tmp_path, tmp_path / "output", every)
        processes.until((run / "checkpoint.pt").exists, process)
        process.kill()
        assert processes.wait(process) == -signal.SIGKILL
        progress = torch.load(run / "checkpoint.pt", weights_only=True)["progress"]
        assert 0 < progress["step"] < STEPS
        assert processes.wait(processes.start(line, tmp_path, tmp_path / "output")) == 0
        said = f"resuming in epoch {progress['epoch'] + 1} at step {progress['step']}\n"
        assert said in (tmp_path / "output").read_text()
        assert outcome(run) == outcome(whole)

    @pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
    def test_stopped_by_a_signal_and_run_again(
        self, line: list[str], whole: Path, tmp_path: Path, number: signal.Signals, status: int
    ) -> None:
        run = tmp_path / "runs" / "train" / whole.name
        process = processes.start(line, tmp_path, tmp_path / "output")
        processes.until((run / "history.csv").exists, process)
        assert process.pid is not None
        os.kill(process.pid, number)
        assert processes.wait(process) == status
        assert (run / "checkpoint.pt").exists()
        assert not (run / "result.json").exists()
        assert not (run / "failure.json").exists()
        assert "Traceback" not in (tmp_path / "output").read_text()
        assert processes.wait(processes.start(line, tmp_path, tmp_path / "output")) == 0
        assert outcome(run) == outcome(whole)

    def test_python_m_sstune_stops_on_sigterm(self, line: list[str], whole: Path, tmp_path: Path) -> None:
        """The one test that starts an interpreter from nothing, as a user or a cluster does."""
        environment = {**os.environ, "PYTHONPATH": str(Path(sstune.__file__).parents[1])}
        command = [sys.executable, "-m", "sstune", *line, "epochs=1000", f"out={tmp_path}"]
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        assert whole.name.split("-s0-")[0] in lines[0]
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=processes.PATIENCE)
        assert process.returncode == 143
        assert error == "sstune: stopped by a signal; run the same command to resume\n"
        state = torch.load(directory(tmp_path) / "checkpoint.pt", weights_only=True)
        assert state["progress"]["epoch"] * STEPS + state["progress"]["step"] >= 1


def right(run: Path, config: RunConfig) -> dict[str, int]:
    """How many images a stored model classifies right, in a network of its own."""
    data = datasets.load(config.dataset)
    network = backbones.build(config.backbone, (1, 8, 8), 10, config.dataset.mean, config.dataset.std)
    assert backbones.load_third_party(network, run / "model.pt") == []
    task = tasks.build(config.task, 10)
    splits = {"val": data.val, "test": data.test}
    return {
        name: int(tasks.evaluate(network, task, split, CPU).score.correct or 0)
        for name, split in splits.items()
    }


def spoiled(
    overrides: list[str], tmp_path: Path, epochs: int = 4, stop: StopFlag | None = None
) -> tuple[RunConfig, dict[str, Any], list[float]]:
    """A run whose learning rate spoils the network after three epochs; its row and validation accuracies."""
    recipe = [f"epochs={epochs}", "batch_size=32", "dataset.flip=false", "optimizer.lr=0.05"]
    config = compose("train", [*overrides, *recipe, "schedule=multistep", "schedule.milestones=[3]"])
    assert isinstance(config.schedule, MultistepConfig)
    config.schedule.gamma = 400.0
    row = work(config, tmp_path, stop)
    history = outcome(directory(tmp_path))["history"]
    return config, row, [float(line["val_accuracy"]) for line in history]


class TestChoice:
    def test_the_best_epoch_on_validation_is_kept_and_measured_once_on_test(self, trained: Path) -> None:
        row = json.loads((trained / "result.json").read_text())
        val, test = row["measurements"]
        assert (val["split"], test["split"]) == ("val", "test")
        with (trained / "history.csv").open() as file:
            accuracies = [float(line["val_accuracy"]) for line in csv.DictReader(file)]
        assert max(accuracies) == val["correct"] / val["n"]
        assert row["epoch"] == accuracies.index(max(accuracies)) + 1

        config = restore(yaml.safe_load((trained / "config.yaml").read_text()))
        assert right(trained, config) == {"val": val["correct"], "test": test["correct"]}
        assert test["correct"] > 0.5 * test["n"]

    def test_an_earlier_epoch_can_be_the_best(self, short: list[str], tmp_path: Path) -> None:
        config, row, accuracies = spoiled(short, tmp_path)
        assert row["epoch"] == accuracies.index(max(accuracies)) + 1 < 4
        assert max(accuracies) > 0.3 > accuracies[-1]
        counts = {entry["split"]: entry["correct"] for entry in row["measurements"]}
        assert counts["val"] == round(max(accuracies) * 72)
        assert counts == right(directory(tmp_path), config)

    def test_the_last_epoch_is_kept_when_asked_for(self, short: list[str], tmp_path: Path) -> None:
        config, row, accuracies = spoiled([*short, "select=last"], tmp_path)
        assert row["epoch"] == 4
        assert max(accuracies) > accuracies[-1]
        counts = {entry["split"]: entry["correct"] for entry in row["measurements"]}
        assert counts["val"] == round(accuracies[-1] * 72)
        assert counts == right(directory(tmp_path), config)


class TestPatience:
    @pytest.mark.parametrize("patience", [1, 2])
    def test_training_ends_after_so_many_epochs_without_a_better_one(
        self, short: list[str], tmp_path: Path, patience: int
    ) -> None:
        _, whole, accuracies = spoiled(short, tmp_path / "whole", epochs=7)
        best = [accuracies.index(max(accuracies[:epoch])) + 1 for epoch in range(1, 8)]
        expected = next(epoch for epoch in range(1, 8) if epoch - best[epoch - 1] >= patience)
        assert 1 < expected < 7
        lines = [*short, f"patience={patience}"]
        _, row, seen = spoiled(lines, tmp_path / "patient", epochs=7)
        assert (whole["epochs_trained"], row["epochs_trained"]) == (7, expected)
        assert seen == accuracies[:expected]
        assert row["epoch"] == best[expected - 1]
        # killed before its row was written, it trains no more
        stop = StopAfter(1)
        assert spoiled(lines, tmp_path / "patient", epochs=7, stop=stop)[1] == {**row, "notes": []}
        assert stop.looks == 1

    def test_a_run_that_gets_better_goes_to_its_end(self, short: list[str], tmp_path: Path) -> None:
        lines = [*short, "epochs=2", "batch_size=32", "optimizer.lr=0.05", "patience=1"]
        assert work(compose("train", lines), tmp_path)["epochs_trained"] == 2


class TestFrozen:
    @pytest.mark.parametrize(
        ("patterns", "frozen"),
        [
            ("[stem,bn1,layer1]", ("conv1.", "bn1.", "layer1.")),
            ("[layer?.0,head]", ("layer1.0.", "layer2.0.", "layer3.0.", "linear.")),
            (
                "['*conv*',head]",
                ("conv1.", "linear.", *(f"layer{i}.{j}.conv" for i in (1, 2, 3) for j in range(3))),
            ),
        ],
    )
    def test_weights_and_statistics_stay_bit_equal_and_the_others_move(
        self, short: list[str], tmp_path: Path, patterns: str, frozen: tuple[str, ...]
    ) -> None:
        config = compose("train", [*short, "epochs=1", "rule=usf", f"optimizer.freeze={patterns}"])
        work(config, tmp_path)
        torch.manual_seed(config.seed)
        network = backbones.build(config.backbone, (1, 8, 8), 10, config.dataset.mean, config.dataset.std)
        start = network.backbone.state_dict()
        ended = torch.load(directory(tmp_path) / "model.pt", weights_only=True)["state_dict"]
        for name, value in start.items():
            if name == "linear.bias" and not name.startswith(frozen):
                continue
            assert torch.equal(ended[name], value) == name.startswith(frozen), name


Make = Callable[..., Trainer]


@pytest.fixture
def make(short: list[str]) -> Make:
    """A trainer on the small digits, outside any run."""

    def make(*overrides: str, lr: float = 0.1) -> Trainer:
        config = compose("train", [*short, *overrides, f"optimizer.lr={lr}"])
        torch.manual_seed(0)
        data = datasets.load(config.dataset)
        network = backbones.build(config.backbone, (1, 8, 8), 10, config.dataset.mean, config.dataset.std)
        rules.convert(network.backbone, config.rule, 0, example=torch.zeros(2, 1, 8, 8))
        optimizer = build_optimizer(config.optimizer, network)
        loader = Loader(data.train, config.batch_size, CPU, 0)
        task = tasks.build(config.task, 10)
        saved: list[Progress] = []
        return Trainer(Learner(config, network, task, optimizer, CPU), loader, data, saved.append, StopFlag())

    return make


class TestSteps:
    def test_the_learning_rate_of_each_step_follows_the_schedule(self, make: Make) -> None:
        trainer = make("schedule.warmup_epochs=1", "epochs=2", lr=0.4)
        factor = build_schedule(trainer.config.schedule, 2, STEPS)
        seen: list[float] = []
        trainer.optimizer.register_step_pre_hook(
            lambda optimizer, *_: seen.append(optimizer.param_groups[0]["lr"])
        )
        history = trainer.fit(Progress()).history
        assert seen == [0.4 * factor(i) for i in range(2 * STEPS)]
        assert [entry["lr"] for entry in history] == [seen[STEPS - 1], seen[-1]]

    def test_weight_decay_of_each_step_follows_its_milestones(self, make: Make) -> None:
        settings = ["weight_decay=0.5", "weight_decay_milestones=[1,2]", "weight_decay_gamma=0.1"]
        trainer = make("epochs=3", *(f"optimizer.{setting}" for setting in settings))
        seen: list[float] = []
        trainer.optimizer.register_step_pre_hook(
            lambda optimizer, *_: seen.append(optimizer.param_groups[0]["weight_decay"])
        )
        trainer.fit(Progress())
        assert seen == pytest.approx([0.5] * STEPS + [0.05] * STEPS + [0.005] * STEPS)

    @pytest.mark.parametrize("rule", [["rule=bp"], ["rule=kp", "rule.start=random"]])
    def test_each_layer_has_its_own_factor_on_both_schedules(self, make: Make, rule: list[str]) -> None:
        trainer = make(
            *rule, "schedule.warmup_epochs=1", "epochs=2", "optimizer.lr_factors={layer1:0.1,head:10}",
            "optimizer.weight_decay=0.3", "optimizer.weight_decay_milestones=[1]", lr=0.01,
        )  # fmt: skip
        named = {id(parameter): name for name, parameter in trainer.network.backbone.named_parameters()}
        seen: dict[str, list[tuple[float, float]]] = {name: [] for name in named.values()}

        def record(optimizer: torch.optim.Optimizer, *_: object) -> None:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    seen[named[id(parameter)]].append((group["lr"], group["weight_decay"]))

        trainer.optimizer.register_step_pre_hook(record)
        trainer.fit(Progress())
        factor = build_schedule(trainer.config.schedule, 2, STEPS)
        for name, found in seen.items():
            own = {"layer1": 0.1, "linear": 10.0}.get(name.split(".")[0], 1.0)
            expected = [(0.01 * factor(i) * own, 0.3 if i < STEPS else 0.03) for i in range(2 * STEPS)]
            assert [value for pair in found for value in pair] == pytest.approx(
                [value for pair in expected for value in pair]
            ), name

    @pytest.mark.parametrize("always", [True, False])
    def test_checkpoints_within_an_epoch_are_made_when_it_is_time(
        self, make: Make, monkeypatch: pytest.MonkeyPatch, always: bool
    ) -> None:
        if always:
            monkeypatch.setattr("sstune.training.engine.SAVE_EVERY", 0.0)
        trainer = make("backbone=mlp", "epochs=2")
        saved: list[tuple[int, int]] = []
        trainer.save = lambda progress: saved.append((progress.epoch, progress.step))
        trainer.fit(Progress())
        within = [(epoch, step) for epoch in range(2) for step in range(1, STEPS)]
        assert saved == sorted([(1, 0), (2, 0), *(within if always else [])])

    def test_kp_closed_form_follows_the_trainers_own_schedules(self, make: Make) -> None:
        """V - W shrinks by what learning rate, momentum and weight decay of every step make of it."""
        trainer = make(
            "rule=kp", "rule.start=random", "epochs=2", "schedule.warmup_epochs=1",
            "optimizer.weight_decay=0.3", "optimizer.weight_decay_milestones=[1]", "optimizer.nesterov=false",
        )  # fmt: skip
        layer = rules.feedback_layers(trainer.network)["backbone.linear"]
        started = layer.feedback.matrix(layer.weight) - layer.weight.detach()
        factor = build_schedule(trainer.config.schedule, 2, STEPS)
        left, velocity = 1.0, 0.0
        for step in range(2 * STEPS):
            velocity = 0.9 * velocity + (0.3 if step < STEPS else 0.03) * left
            left -= 0.1 * factor(step) * velocity
        trainer.fit(Progress())
        ended = layer.feedback.matrix(layer.weight) - layer.weight.detach()
        assert 0.01 < left < 0.9
        torch.testing.assert_close(ended, left * started, rtol=1e-4, atol=1e-6)

    def test_clipping_takes_no_account_of_trained_feedback_but_includes_it(self, make: Make) -> None:
        settings = ["rule=pfa", "rule.start=random", "rule.closed_form=false", "epochs=1"]
        trainers = [make(*settings, f"clip_norm={clip}") for clip in ("null", "0.01")]
        batch = next(trainers[0].loader.epoch(0))
        for trainer in trainers:
            trainer.step(batch, len(batch))
        free, clipped = (
            {name: p.grad for name, p in trainer.network.named_parameters() if p.grad is not None}
            for trainer in trainers
        )
        own = nn.utils.get_total_norm([grad for name, grad in free.items() if ".feedback." not in name])
        assert any(".feedback." in name for name in free)
        for name, gradient in clipped.items():
            torch.testing.assert_close(gradient, free[name] * 0.01 / own, rtol=1e-4, atol=1e-9)

    def test_updates_are_compared_on_images_of_every_class(self, make: Make) -> None:
        """Though a source may store its images sorted by class."""
        trainer = make("rule=usf")
        order = trainer.loader.split.targets.argsort()
        by_class = Loader(trainer.loader.split.take(order), 50, CPU, 0)
        learner = Learner(trainer.config, trainer.network, trainer.task, trainer.optimizer, CPU)
        again = Trainer(learner, by_class, trainer.splits, trainer.save, StopFlag())
        assert len(again.probe) == 128
        assert set(again.probe.targets.tolist()) == set(range(10))

    @pytest.mark.parametrize("rule", [["brsf", "rule.redraw=forward"], ["usf"], ["wm"], ["dfa"]])
    def test_measuring_alignment_changes_no_weight(self, make: Make, rule: list[str]) -> None:
        states = []
        for measured in ("true", "false"):
            trainer = make(f"rule={rule[0]}", *rule[1:], "epochs=2", f"alignment={measured}")
            progress = trainer.fit(Progress())
            states.append(trainer.network.state_dict())
            assert bool(progress.alignment) == (measured == "true")
            cosine = progress.history[-1]["update_cosine"]
            assert 0 < cosine < 1 if measured == "true" else cosine != cosine
        for name, value in states[0].items():
            other = states[1][name]
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other

    @pytest.mark.parametrize(("clip", "bounded"), [("null", False), ("0.01", True)])
    def test_clip_norm_bounds_the_gradient_that_is_applied(
        self, make: Make, clip: str, bounded: bool
    ) -> None:
        trainer = make(f"clip_norm={clip}", "epochs=1")
        norms: list[float] = []

        def record(*_: object) -> None:
            gradients = [parameter.grad for parameter in trainer.network.parameters()]
            norms.append(float(nn.utils.get_total_norm([g for g in gradients if g is not None])))

        trainer.optimizer.register_step_pre_hook(record)
        trainer.fit(Progress())
        assert len(norms) == STEPS
        assert (max(norms) <= 0.01 * (1 + 1e-4)) == bounded

    @pytest.mark.parametrize("smoothing", [0.0, 0.2])
    def test_the_loss_is_cross_entropy_with_label_smoothing(self, make: Make, smoothing: float) -> None:
        trainer = make(f"task.label_smoothing={smoothing}")
        batch = next(trainer.loader.epoch(0))
        labels, outputs = batch.targets, trainer.network(batch.images).detach()
        loss, right = trainer.step(batch, len(batch))
        assert int(right) == int((outputs.argmax(1) == labels).sum())
        picked = -F.log_softmax(outputs, 1)
        expected = (1 - smoothing) * picked[torch.arange(len(labels)), labels] + smoothing * picked.mean(1)
        assert float(loss) == pytest.approx(float(expected.mean()), rel=1e-5)

    @pytest.mark.parametrize(
        ("redraw", "expected"),
        [
            ("step", 1 + 2 * STEPS),  # at conversion, then once for each step
            ("forward", 1 + 2 * (STEPS + 1)),  # and one batch of validation in each epoch
        ],
    )
    def test_brsf_draws_as_often_as_it_says(self, make: Make, redraw: str, expected: int) -> None:
        trainer = make("rule=brsf", f"rule.redraw={redraw}", "epochs=2")
        trainer.fit(Progress())
        draws = {layer.feedback.draws for layer in rules.feedback_layers(trainer.network).values()}  # type: ignore[attr-defined]
        assert draws == {expected}  # comparing updates with true gradients draws, too, but takes it back

    def test_the_history_is_what_was_seen(self, make: Make) -> None:
        trainer = make("rule=usf", "epochs=1", lr=1e-12)
        (entry,) = trainer.fit(Progress()).history
        # with next to no learning rate the net stays what it was
        layers = rules.alignment(trainer.network)
        assert entry["angle"] == pytest.approx(sum(layer.angle for layer in layers) / len(layers))
        assert entry["sign_agreement"] == 1.0
        assert entry["rms_ratio"] == pytest.approx(1.0)
        assert entry["val_accuracy"] * 72 == pytest.approx(round(entry["val_accuracy"] * 72))
        assert entry["train_loss"] > 0
        assert entry["epoch"] == 1

    def test_divergence_is_an_error_that_says_what_to_do(self, make: Make) -> None:
        with pytest.raises(FloatingPointError, match=r"loss is nan in epoch 1: lower optimizer.lr"):
            make(lr=1e30).fit(Progress())


class TestPrecision:
    def test_bf16_trains_float32_weights_and_is_recorded(self, short: list[str], tmp_path: Path) -> None:
        models = {}
        for precision in ("float32", "bf16"):
            config = compose("train", [*short, "epochs=1", f"precision={precision}"])
            assert work(config, tmp_path / precision)["precision"] == precision
            path = directory(tmp_path / precision) / "model.pt"
            models[precision] = torch.load(path, weights_only=True)["state_dict"]
        assert {value.dtype for value in models["bf16"].values()} == {torch.float32, torch.int64}
        assert not torch.equal(models["bf16"]["conv1.weight"], models["float32"]["conv1.weight"])

    def test_only_the_training_step_is_bf16(self, make: Make) -> None:
        trainer = make("precision=bf16", "epochs=1")
        seen = set()
        trainer.network.backbone.linear.register_forward_hook(  # type: ignore[union-attr]
            lambda module, inputs, output: seen.add((module.training, output.dtype))
        )
        trainer.fit(Progress())
        assert seen == {(True, torch.bfloat16), (False, torch.float32)}


class TestAverage:
    def test_the_moving_average_is_what_is_judged_and_kept(self, make: Make, short: list[str]) -> None:
        trainer = make("rule=usf", "ema=0.7", "epochs=1", "select=last")
        states: list[dict[str, torch.Tensor]] = []
        trainer.optimizer.register_step_post_hook(
            lambda *_: states.append(
                {name: p.detach().double() for name, p in trainer.network.named_parameters()}
            )
        )
        progress = trainer.fit(Progress())
        assert len(states) == STEPS
        expected = states[0]
        for state in states[1:]:
            expected = {name: 0.7 * expected[name] + 0.3 * state[name] for name in expected}
        buffers = dict(trainer.network.named_buffers())
        assert trainer.average is not None
        kept = progress.best["network"]
        for name, value in kept.items():
            if name in expected:
                torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
                assert not torch.equal(value, trainer.network.state_dict()[name])
            elif name in buffers:
                assert torch.equal(value, buffers[name]), name
        again = make("rule=usf").network
        again.load_state_dict(kept)
        judged = tasks.evaluate(again, trainer.task, trainer.splits.val, CPU)
        assert progress.best["val"] == {"correct": judged.score.correct}
        assert progress.best["val_score"] == judged.score.value
        assert progress.history[-1]["val_loss"] == pytest.approx(judged.loss, rel=1e-6)
        raw = tasks.evaluate(trainer.network, trainer.task, trainer.splits.val, CPU)
        assert progress.history[-1]["val_loss"] != pytest.approx(raw.loss, rel=1e-3)

    def test_the_stored_model_is_the_average(self, short: list[str], tmp_path: Path) -> None:
        config = compose("train", [*short, "rule=usf", "ema=0.5", "dataset.flip=false"])
        row = work(config, tmp_path)
        counts = {entry["split"]: entry["correct"] for entry in row["measurements"]}
        assert counts == right(directory(tmp_path), config)
        state = torch.load(directory(tmp_path) / "checkpoint.pt", weights_only=True)
        stored = torch.load(directory(tmp_path) / "model.pt", weights_only=True)["state_dict"]
        if row["epoch"] == config.epochs:  # the last state of both is in the checkpoint
            name = "layer1.0.conv1.weight"
            assert torch.equal(stored[name], state["progress"]["average"][f"module.backbone.{name}"])
            assert not torch.equal(stored[name], state["network"][f"backbone.{name}"])


class Graphs(StopFlag):
    """A flag that notes how many graphs there are when the engine looks at it: once each step."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def __bool__(self) -> bool:
        self.seen.append(int(torch._dynamo.utils.counters["stats"]["unique_graphs"]))
        return super().__bool__()


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler, g++")
@pytest.mark.parametrize("rule", ["usf", "brsf", "kp"])
def test_a_compiled_run_is_the_eager_run_and_compiles_once(
    short: list[str], tmp_path: Path, rule: str
) -> None:
    torch._dynamo.reset()
    line = [*short, "backbone=mlp", "backbone.hidden=[32]", f"rule={rule}", "epochs=2", "optimizer.lr=0.01"]
    line += ["rule.start=random"] if rule == "kp" else []
    eager = work(compose("train", line), tmp_path / "eager")
    before = int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    graphs = Graphs()
    compiled = work(compose("train", [*line, "compile=default"]), tmp_path / "compiled", graphs)
    assert (eager["compiled"], compiled["compiled"]) == (None, "default")
    assert len(graphs.seen) == 2 * STEPS  # the last batch of an epoch is smaller
    assert graphs.seen == [before + 1] * 2 * STEPS
    assert compiled["measurements"] == eager["measurements"]
    models = [
        torch.load(directory(tmp_path / name) / "model.pt", weights_only=True)["state_dict"]
        for name in ("eager", "compiled")
    ]
    torch.testing.assert_close(models[1], models[0], rtol=1e-5, atol=1e-5)
