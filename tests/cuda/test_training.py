"""Training and fine-tuning on the pretended GPU: every rule in float32 and bf16, resumed, without waiting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lines import DATA, MLP, RESNET, Answer, Drive, sstune

from sstune.catalogue import options
from sstune.schema import Precision

RULES = options("rule")
# What the loader, the engine and a rule do in a step; what they do once an epoch is told apart by its count.
IN_A_STEP = ("training/step.py", "training/engine.py", "datasets/", "sstune/rules/", "optim/", "swa_utils")
LONGER = ["dataset.train_n=96"]  # six steps instead of three


@pytest.fixture(scope="module")
def told(drive: Drive, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    """Answers by name, all of one process, in which ``runs`` holds what they have made."""
    requests = requested()
    directory = tmp_path_factory.mktemp("training")
    answers = dict(zip(requests, drive(list(requests.values()), directory), strict=True))
    answers["directory"] = Answer(0, str(directory), "", [])
    return answers


def requested() -> dict[str, dict[str, Any]]:
    found = {"auto": sstune("train", *RESNET, "device=auto")}
    for rule in RULES:
        for precision in ("float32", "bf16"):
            words = [f"rule={rule}", f"precision={precision}", f"out={precision}", "device=cuda"]
            found[f"{rule} {precision}"] = sstune("finetune", *RESNET, *words)
        # waits of a step: what three further steps add
        found[f"{rule} short"] = sstune("train", *MLP, f"rule={rule}", "alignment=false")
        found[f"{rule} long"] = sstune("train", *MLP, f"rule={rule}", "alignment=false", *LONGER)
    for name, words in VARIED.items():
        found[f"{name} short"] = sstune("train", *MLP, *words)
        found[f"{name} long"] = sstune("train", *MLP, *words, *LONGER)
    for name, words in RESUMED.items():
        found[f"{name} whole"] = sstune("train", *words, "out=whole")
        found[f"{name} stopped"] = sstune("train", *words, "out=resumed", stop=2)
        found[f"{name} resumed"] = sstune("train", *words, "out=resumed")
    found["tf32"] = sstune("train", *MLP, "precision=tf32", "seed=5")
    found["deterministic"] = sstune("train", *RESNET, "deterministic=true", "device=cuda:0", "out=repeated")
    found["alexnet"] = sstune("train", *DATA, *ALEXNET, "deterministic=true")
    found["absent"] = sstune("train", *MLP, "device=cuda:7", "out=absent")
    return found


VARIED = {
    "augmented": ["dataset.flip=true", "dataset.cutout=2", "dataset.crop_scale=0.5"],
    "averaged": ["ema=0.9", "clip_norm=1", "accumulate=2"],
    "adamw": ["optimizer=adamw", "optimizer.lr=0.001", "precision=bf16"],
    "adversarial": ["adversary.attack=pgd2"],
}
RESUMED = {
    "brsf": [*RESNET, "rule=brsf", "ema=0.9"],
    "dropout": [*DATA, "epochs=1", "batch_size=16", "backbone=alexnet", "backbone.input_size=17"],
}
ALEXNET = ["backbone=alexnet", "backbone.input_size=33", "epochs=1", "batch_size=24"]


def row(told: dict[str, Answer], name: str) -> dict[str, Any]:
    """The row of the run that an answer names last."""
    assert told[name].status == 0, told[name].err
    directory = Path(told["directory"].out)
    *_, run = (line for line in told[name].out.splitlines() if (directory / line / "result.json").exists())
    return json.loads((directory / run / "result.json").read_text())


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_trained(rule: str, precision: str, told: dict[str, Answer]) -> None:
    found = row(told, f"{rule} {precision}")
    assert found["device"] == "no GPU (pretended)"
    assert found["precision"] == Precision[precision]
    assert found["measurements"][0]["n"] > 0


@pytest.mark.parametrize("name", [*RULES, *VARIED])
def test_a_step_does_not_wait_for_the_device(name: str, told: dict[str, Answer]) -> None:
    short, long = told[f"{name} short"], told[f"{name} long"]
    assert (short.status, long.status) == (0, 0), long.err
    assert long.waited() == short.waited(), set(map(tuple, long.waits)) - set(map(tuple, short.waits))
    assert short.waited(*IN_A_STEP) <= 6


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_ends_bit_equal(name: str, told: dict[str, Answer]) -> None:
    assert told[f"{name} stopped"].status == 143
    assert "resuming in epoch 1 at step 2" in told[f"{name} resumed"].out
    assert row(told, f"{name} resumed")["measurements"] == row(told, f"{name} whole")["measurements"]
    folder = Path(told["directory"].out)
    whole, resumed = (weights(folder / out, name) for out in ("whole", "resumed"))
    assert whole.keys() == resumed.keys()
    for key, value in whole.items():
        assert torch.equal(value, resumed[key]), key


def weights(out: Path, name: str) -> dict[str, torch.Tensor]:
    """Of the one run whose network is that of ``RESUMED[name]``."""
    backbone = next(word for word in RESUMED[name] if word.startswith("backbone=")).partition("=")[2]
    (run,) = (out / "train").glob(f"{backbone}-*")
    content = torch.load(run / "model.pt", weights_only=True)
    state = content["state_dict"] | content["feedback"]
    return {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}


def test_tf32_is_over_when_figures_are_measured(told: dict[str, Answer]) -> None:
    """Validation, test and the next run would be refused, were products still in TF32."""
    assert row(told, "tf32")["precision"] == "tf32"


@pytest.mark.parametrize("name", ["deterministic", "alexnet"])
def test_algorithms_that_repeat_are_there(name: str, told: dict[str, Answer]) -> None:
    assert row(told, name)["deterministic"]


def test_a_gpu_that_is_not_there_is_one_line(told: dict[str, Answer]) -> None:
    answer = told["absent"]
    assert answer.status == 2
    assert answer.err == "sstune: device: cuda:7 does not exist; this machine has only cuda:0\n"
    assert not (Path(told["directory"].out) / "absent").exists()
