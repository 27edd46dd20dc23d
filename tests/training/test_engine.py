from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

import sstune
from sstune import backbones, datasets, rules, tasks
from sstune.cli import main
from sstune.commands.train import learn
from sstune.composition import compose, restore
from sstune.datasets import Loader
from sstune.interrupt import StopFlag, Stopped
from sstune.runs import Run
from sstune.schema import MultistepConfig, RunConfig
from sstune.training import Progress, Trainer, build_optimizer, build_schedule

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
}


class StopAfter(StopFlag):
    """A flag that is set, as by SIGTERM, when the engine has looked at it ``steps`` times: once each step."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def __bool__(self) -> bool:
        self.steps -= 1
        if self.steps == 0:
            self.handle(signal.SIGTERM, None)
        return super().__bool__()


@pytest.fixture(scope="module")
def short() -> list[str]:
    return ["dataset.test_fraction=0.8", "dataset.val_fraction=0.2", "threads=1", "device=cpu", *SHORT]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Bit-equality holds for one number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def work(config: RunConfig, out: Path, stop: StopFlag | None = None) -> dict[str, Any]:
    run = Run(replace(config, out=str(out)), [], None)
    run.directory.mkdir(parents=True, exist_ok=True)
    return learn(run, None, CPU, StopFlag() if stop is None else stop)


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
        assert stop.steps == 1  # never looked at: no step was made again
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
        assert error == "sstune: stopped by a signal; the same line goes on from here\n"
        state = torch.load(directory(tmp_path) / "checkpoint.pt", weights_only=True)
        assert state["progress"]["epoch"] * STEPS + state["progress"]["step"] >= 1


def right(run: Path, config: RunConfig) -> dict[str, int]:
    """How many images a stored model classifies right, in a network of its own."""
    data = datasets.load(config.dataset)
    network = backbones.build(config.backbone, (1, 8, 8), 10, config.dataset.mean, config.dataset.std)
    assert backbones.load_third_party(network, run / "model.pt") == []
    task = tasks.build(config.task, 10)
    splits = {"val": data.val, "test": data.test}
    return {name: tasks.evaluate(network, task, split, CPU).n_correct for name, split in splits.items()}


def spoiled(overrides: list[str], tmp_path: Path) -> tuple[RunConfig, dict[str, Any], list[float]]:
    """A run whose last learning rate spoils the network; its row and validation accuracies."""
    recipe = ["epochs=4", "batch_size=32", "dataset.flip=false", "optimizer.lr=0.05"]
    config = compose("train", [*overrides, *recipe, "schedule=multistep", "schedule.milestones=[3]"])
    assert isinstance(config.schedule, MultistepConfig)
    config.schedule.gamma = 400.0
    row = work(config, tmp_path)
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
        return Trainer(config, network, task, loader, data.val, optimizer, CPU, saved.append, StopFlag())

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
        images, labels = next(trainers[0].loader.epoch(0))
        for trainer in trainers:
            trainer.step(images, labels, len(labels))
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
        order = trainer.loader.split.labels.argsort()
        by_class = Loader(trainer.loader.split.take(order), 50, CPU, 0)
        again = Trainer(trainer.config, trainer.network, trainer.task, by_class, trainer.val,
                        trainer.optimizer, CPU, trainer.save, StopFlag())  # fmt: skip
        assert len(again.probe) == 128
        assert set(again.probe.labels.tolist()) == set(range(10))

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
        images, labels = next(trainer.loader.epoch(0))
        outputs = trainer.network(images).detach()
        loss, right = trainer.step(images, labels, len(labels))
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
