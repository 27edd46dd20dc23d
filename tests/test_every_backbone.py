"""Whatever backbone the configurations offer: trained, stopped and resumed, exported, and attacked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from stopping import StopAfter

from sstune import attacks, backbones, datasets, rules, tasks, training
from sstune.catalogue import options
from sstune.composition import compose
from sstune.interrupt import StopFlag, Stopped
from sstune.schema import AscentConfig, FolderConfig, Gradient, RunConfig

pytestmark = pytest.mark.usefixtures("one_thread")  # bit-equality holds for one number of threads

CPU = torch.device("cpu")
CLASSES = 2
IMAGES = {"train": 8, "val": 4, "test": 4}
RECIPE = [
    "epochs=1", "batch_size=4", "select=last", "alignment=false", "device=cpu", "threads=1",
    "optimizer.lr=0.01", "optimizer.weight_decay=0", "schedule.warmup_epochs=0",
]  # fmt: skip
# What a choice needs, or what keeps a large network quick.
SETTINGS = {
    "timm": ["backbone.name=convnext_atto"],
    "resnet18": ["backbone.input_size=16"],
    "resnet34": ["backbone.input_size=8"],
    "resnet50": ["backbone.input_size=8"],
    "vit_small": ["backbone.patch_size=8"],
    "alexnet_bn": ["dataset.image_size=64"],
}
ONE_OF_A_KIND = ["mlp", "lenet_cifar", "resnet20", "resnet18", "alexnet", "vgg16", "vit_tiny", "timm"]
EACH_BACKBONE = pytest.mark.parametrize("name", options("backbone"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A folder of noisy photographs, dark ones and bright ones, as overrides."""
    root = tmp_path_factory.mktemp("photographs")
    stream = np.random.default_rng(0)
    for split, n in IMAGES.items():
        for i in range(n):
            label, low = ("bright", 100) if i % 2 else ("dark", 0)
            pixels = stream.integers(low, low + 156, (32, 32, 3), dtype=np.uint8)
            path = root / split / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    cache = tmp_path_factory.mktemp("cache")
    return [
        "dataset=folder", "dataset.label=photographs", f"dataset.root={root}", "dataset.val_split=val",
        f"dataset.cache={cache}",
    ]  # fmt: skip


def line(name: str, rule: str, data: list[str]) -> list[str]:
    return [*data, *RECIPE, f"backbone={name}", *SETTINGS.get(name, []), f"rule={rule}"]


def shape(config: RunConfig) -> tuple[int, int, int]:
    assert isinstance(config.dataset, FolderConfig)
    size = config.dataset.image_size or 32
    return 3, size, size


def built(config: RunConfig, seed: int = 0) -> backbones.Network:
    torch.manual_seed(seed)
    mean, std = config.dataset.mean, config.dataset.std
    return backbones.build(config.backbone, shape(config), CLASSES, mean, std)


def trainer(config: RunConfig, stop: StopFlag, save: Callable[..., None]) -> training.Trainer:
    """A new network with its rule and everything that trains it; ``save(progress, trainer)``."""
    splits = datasets.load(config.dataset)
    network = built(config)
    example = network.prepare(torch.zeros(2, *shape(config)))
    rules.convert(network.backbone, config.rule, config.seed, network.aliases, example)
    optimizer = training.build_optimizer(config.optimizer, network)
    learner = training.Learner(config, network, tasks.build(config.task, CLASSES), optimizer, CPU)
    loader = datasets.Loader(splits.train, config.batch_size, CPU, config.seed)
    made = training.Trainer(learner, loader, splits, lambda progress: save(progress, made), stop)
    return made


def nowhere(progress: training.Progress, trainer: training.Trainer) -> None:
    pass


@pytest.mark.parametrize("rule", ["bp", "usf", "frsf"])
@EACH_BACKBONE
def test_is_trained_exported_and_attacked(name: str, rule: str, data: list[str]) -> None:
    config = compose("train", line(name, rule, data))
    made = trainer(config, StopFlag(), nowhere)
    made.fit(training.Progress())
    converted = made.network
    assert isinstance(converted, backbones.Network)
    exported = rules.plain_state_dict(converted.backbone)

    untrained = built(config).backbone.state_dict()
    trained = [f"{layer}.weight" for layer in rules.feedback_layers(converted.backbone)]
    trained += [f"{layer}.weight" for layer in converted.aliases.values()]
    assert [key for key in trained if torch.equal(exported[key], untrained[key])] == []
    assert (len(trained) > 2) == (rule != "bp")

    plain = built(config, seed=1)
    plain.backbone.load_state_dict(exported, strict=True)
    images = torch.rand(2, *shape(config))
    with torch.no_grad():
        torch.testing.assert_close(converted.eval()(images), plain.eval()(images), rtol=1e-5, atol=1e-6)

    test, samples = datasets.load(config.dataset).test.sample(None, 0)
    fgsm = attacks.ATTACKS["fgsm"](AscentConfig("fgsm", ["16/255"]), 0)
    victim = attacks.Victim.of(converted, made.task, test, samples, CPU)

    def left(network: backbones.Network, gradient: Gradient) -> torch.Tensor:
        attacked = dataclasses.replace(victim, network=network)
        return attacks.run_attack(
            attacked, fgsm, attacks.GradientSource(gradient, network), 16 / 255, 4
        ).robust

    for gradient in (Gradient.rule, Gradient.exact):
        attacks.check_zero_eps(victim, fgsm, attacks.GradientSource(gradient, converted), 4)
        right = left(converted, gradient)
        assert not (right & ~victim.clean).any()
        if gradient is Gradient.exact:
            assert torch.equal(right, left(plain, gradient))


@EACH_BACKBONE
def test_resumed_training_is_bit_equal(name: str, data: list[str], tmp_path: Path) -> None:
    """Stopped between its two steps; dropout and batch statistics go on as if nothing had been."""
    config = compose("train", line(name, "usf", data))
    checkpoint = tmp_path / "checkpoint.pt"

    def save_when_stopped(progress: training.Progress, stopped: training.Trainer) -> None:
        if progress.step:
            training.save(checkpoint, "this", progress, stopped.learner)

    whole = trainer(config, StopFlag(), nowhere)
    whole.fit(training.Progress())
    with pytest.raises(Stopped):
        trainer(config, StopAfter(1), save_when_stopped).fit(training.Progress())
    resumed = trainer(config, StopFlag(), nowhere)
    progress = training.load(checkpoint, "this", resumed.learner)
    assert progress is not None
    assert (progress.epoch, progress.step) == (0, 1)
    resumed.fit(progress)
    expected, found = whole.network.state_dict(), resumed.network.state_dict()
    assert [key for key in expected if not same(found[key], expected[key])] == []


def same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("name", ONE_OF_A_KIND)
def test_the_commands(name: str, data: list[str], ask: Callable[..., Any], tmp_path: Path) -> None:
    """sstune train and sstune attack."""
    assert ask("train", *line(name, "usf", data)).status == 0
    (run,) = (tmp_path / "runs/train").iterdir()
    limits = ["attack=fgsm", "attack.eps=[16/255]", "device=cpu", "threads=1"]
    assert ask("attack", f"init_from={run}", *limits).status == 0
    (attacked,) = (tmp_path / "runs/attack").iterdir()
    row = json.loads((run / "result.json").read_text())
    assert row["preprocessing"] is None
    clean, *robust = json.loads((attacked / "result.json").read_text())["measurements"]
    assert clean["correct"] == row["measurements"][1]["correct"]
    assert [entry["gradient"] for entry in robust] == ["rule", "exact"]
    assert {entry["n"] for entry in (clean, *robust)} == {IMAGES["test"]}


def test_a_file_stands_in_for_the_hub(data: list[str], ask: Callable[..., Any], tmp_path: Path) -> None:
    """With init_from, pretrained means the weights' preprocessing, and needs no cache."""
    model = timm.create_model("resnet18")
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    small = ["backbone.pretrained=true", "backbone.input_size=16", "init_from=model.safetensors"]
    recipe = [setting for setting in line("resnet18", "usf", data) if "input_size" not in setting]
    answer = ask("finetune", *recipe, *small)
    assert answer.status == 0, answer.err
    (run,) = (tmp_path / "runs/finetune").iterdir()
    row = json.loads((run / "result.json").read_text())
    assert row["preprocessing"]["mean"] == [*model.pretrained_cfg["mean"]]
    assert row["preprocessing"]["size"] == [16, 16]
    assert "resized: 32x32 -> 16x16, bicubic" in row["notes"]
    assert "fc.weight: new, 2x512 (the file has 1000x512)" in row["notes"]
    kernel = torch.load(run / "model.pt", weights_only=True)["state_dict"]["conv1.weight"]
    assert kernel.shape == (64, 3, 7, 7)
