"""Every attack on the pretended GPU, resumed, the audit, and how often an attack waits for the device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lines import DATA, MLP, RESNET, Answer, Drive, sstune

from sstune.catalogue import options
from sstune.schema.audit import CHECKS

FEW = ["attack.n=24", "attack.eps=[8/255]", "device=auto"]
RATE = ["optimizer.lr=0.05", "dataset.crop_padding=0"]
SHORT = {
    "pgd": ["attack.steps=3", "attack.restarts=2"],
    "mifgsm": ["attack.steps=3"],
    "transfer": ["attack.steps=2"],
    "noise": ["attack.attempts=4"],
    "square": ["attack.queries=4"],
    "rays": ["attack.queries=8"],
    "apgd": ["attack.steps=2"],
    "apgd_t": ["attack.steps=2"],
    "fab_t": ["attack.steps=2"],
}
HASHING = ("mainstay", "hag", "hag_sign", "sdha")  # see test_hashing_on_a_device.py
ATTACKS = [name for name in options("attack") if name not in ("audit", "transfer", "autoattack", *HASHING)]
VARIED = {
    "targeted": ["attack=pgd", "attack.steps=2", "attack.targeted=random", "attack.eight_bit=true"],
    "L2": ["attack=pgd", "attack.steps=2", "attack.norm=L2", "attack.eps=[0.5]", "attack.loss=margin"],
    "drawn anew": ["attack=pgd", "attack.steps=2", "attack.redraw=forward", "attack.eot=2"],
    "images": ["attack=fgsm", "attack.save_images=2"],
}
# One cell of one batch in which no sample breaks: each of ``n`` steps or queries is made on all of them.
COUNTED = {"pgd": "steps", "mifgsm": "steps", "rays": "queries", "noise": "attempts"}
UNBROKEN = ["attack.n=8", "attack.eps=[0.001/255]", "attack.save_images=0"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("attacks")


@pytest.fixture(scope="module")
def told(drive: Drive, directory: Path) -> dict[str, Answer]:
    """Answers by name, all of one process."""
    first = [
        sstune("train", *RESNET, "rule=brsf", "out=net", "dataset.train_n=300", "epochs=3", *RATE),
        sstune("train", *MLP, "rule=brsf", "out=mlp", "dataset.train_n=1000", "epochs=4", *RATE),
    ]
    assert [answer.status for answer in drive(first, directory)] == [0, 0]
    (directory / "others.py").write_text(POOLING)
    (net,), (mlp,) = ((directory / name / "train").iterdir() for name in ("net", "mlp"))
    requests = requested(f"init_from={net}", f"init_from={mlp}", str(mlp))
    return dict(zip(requests, drive(list(requests.values()), directory), strict=True))


def requested(net: str, mlp: str, other: str) -> dict[str, dict[str, Any]]:
    found = {}
    for name in ATTACKS:
        network = net if name in ("fgsm", "pgd", "mifgsm") else mlp
        found[name] = sstune("attack", network, f"attack={name}", *FEW, *SHORT.get(name, []))
    surrogate = ["attack=transfer", f"attack.surrogates=[{other}]", *SHORT["transfer"]]
    found["transfer"] = sstune("attack", net, *surrogate, *FEW)
    for name, words in VARIED.items():
        found[name] = sstune("attack", net, *FEW, *words)
    for name, setting in COUNTED.items():
        for n in (4, 10):
            words = [f"attack={name}", f"attack.{setting}={n}", f"out=counted-{n}"]
            found[f"{name} {n}"] = sstune("attack", mlp, *UNBROKEN, *words)
    resumed = [net, "attack=pgd", "attack.steps=3", "attack.n=24", "attack.batch_size=12"]
    found["whole"] = sstune("attack", *resumed, "out=whole")
    found["stopped"] = sstune("attack", *resumed, "out=resumed", stop=4)
    found["resumed"] = sstune("attack", *resumed, "out=resumed")
    found["audit"] = sstune("attack", mlp, *AUDIT, f"audit.surrogate={other}", *FEW)
    found["deterministic"] = sstune("attack", *DATA, *RESIZED, "attack=pgd", "attack.steps=2", *FEW)
    found["memory"] = sstune("attack", net, "attack=pgd", *SHORT["pgd"], *FEW, "out=memory", images=30)
    imported = [*DATA, "model.factory=others:pooling", "attack=pgd", "attack.steps=2", *FEW]
    found["imported"] = sstune("attack", *imported, "out=imported")
    found["refused"] = sstune("attack", *imported, "out=refused", "deterministic=true")
    return found


POOLING = """
from torch import nn
def pooling():
    return nn.Sequential(nn.AdaptiveAvgPool2d(5), nn.Flatten(), nn.Linear(25, 10))
"""
AUDIT = ["attack=audit", "audit.black_box_n=12", "audit.square_queries=4", "audit.label_n=8"]
AUDIT += ["audit.label_queries=8"]
RESIZED = ["backbone=alexnet", "backbone.input_size=17", "epochs=1", "batch_size=24", "deterministic=true"]


def row(told: dict[str, Answer], name: str, directory: Path) -> dict[str, Any]:
    """The row of the attack's run, which an answer names last of its runs."""
    assert told[name].status == 0, told[name].err
    *_, run = (line for line in told[name].out.splitlines() if (directory / line / "result.json").exists())
    return json.loads((directory / run / "result.json").read_text())


@pytest.mark.parametrize("name", [*ATTACKS, "transfer", *VARIED])
def test_every_attack_is_made(name: str, told: dict[str, Answer], directory: Path) -> None:
    found = row(told, name, directory)
    assert (found["device"], found["precision"]) == ("no GPU (pretended)", "float32")
    clean, *attacked = found["measurements"]
    assert 10 < clean["correct"] <= clean["n"] == 24
    assert all(entry["correct"] <= clean["correct"] for entry in attacked)


@pytest.mark.parametrize("name", COUNTED)
def test_a_step_waits_for_the_device_once(name: str, told: dict[str, Answer], directory: Path) -> None:
    """To learn which samples are broken; the issue allows two for a step of PGD, four for a query of RayS."""
    few, many = told[f"{name} 4"], told[f"{name} 10"]
    cells = len(row(told, f"{name} 10", directory)["measurements"]) - 1
    row(told, f"{name} 4", directory)
    assert many.waited() - few.waited() == 6 * cells


def test_a_resumed_attack_ends_bit_equal(told: dict[str, Answer], directory: Path) -> None:
    assert told["stopped"].status == 143
    whole, resumed = (row(told, name, directory)["measurements"] for name in ("whole", "resumed"))
    for entry in [*whole, *resumed]:
        entry.pop("seconds", None)
    assert resumed == whole


def test_the_audit_gives_a_verdict(told: dict[str, Answer], directory: Path) -> None:
    found = row(told, "audit", directory)["audit"]
    assert len(found["checks"]) == len(CHECKS)
    assert set(found["not_run"]) <= {"D13"}


def test_resizing_has_a_derivative_that_repeats(told: dict[str, Answer], directory: Path) -> None:
    assert row(told, "deterministic", directory)["deterministic"]


def test_an_operation_that_cannot_repeat_is_refused_in_one_line(told: dict[str, Answer]) -> None:
    """In a network of somebody else, which is as it is."""
    assert told["imported"].status == 0, told["imported"].err
    (line,) = told["refused"].err.splitlines()
    assert told["refused"].status == 2
    assert line.startswith(
        "sstune: deterministic: this network needs _adaptive_avg_pool2d_backward, which is "
        "not deterministic on CUDA"
    )
    assert len(line) <= 200


def test_batches_are_as_large_as_memory_allows(told: dict[str, Answer], directory: Path) -> None:
    """Gradients of eight images, as one of 32 is too much, instead of 24."""
    few, many = (row(told, name, directory)["measurements"] for name in ("memory", "pgd"))
    assert [entry["correct"] for entry in few] == [entry["correct"] for entry in many]
    judged = "attacks/evaluation.py"
    assert told["memory"].waited(judged) > told["pgd"].waited(judged)
