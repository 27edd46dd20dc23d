"""Training of every loss of hashing, and its attacks, on the pretended GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lines import Answer, Drive, sstune

from sstune.schema import HashLoss

LINE = ["dataset=digits", "backbone=mlp", "backbone.hidden=[32]", "task=hashing", "task.bits=16", "epochs=1"]
LINE += ["split.n_query=10", "split.n_train=40", "split.n_val=10", "threads=1", "device=auto"]
ATTACKS = {
    "mainstay": ["attack.steps=3"],
    "hag": ["attack.steps=3"],
    "hag_sign": ["attack.steps=3"],
    "sdha": ["attack.steps=3"],
    "noise": ["attack.attempts=2"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hashing")


@pytest.fixture(scope="module")
def told(drive: Drive, folder: Path) -> dict[str, Answer]:
    """Answers by name; networks first, then attacks on that of csq."""
    nets = {str(loss): sstune("train", *LINE, f"task.loss={loss}", f"out={loss}") for loss in HashLoss}
    answers = dict(zip(nets, drive(list(nets.values()), folder), strict=True))
    (csq,) = (folder / "csq" / "train").iterdir()
    asked = {
        name: sstune("attack", f"init_from={csq}", f"attack={name}", "rule=usf", "device=auto", f"out={name}",
                     "attack.eps=[0.1]", *words)
        for name, words in ATTACKS.items()
    }  # fmt: skip
    return answers | dict(zip(asked, drive(list(asked.values()), folder), strict=True))


def row(folder: Path, name: str) -> dict[str, Any]:
    (path,) = (folder / name).glob("*/*/result.json")
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", [*map(str, HashLoss), *ATTACKS])
def test_runs(name: str, told: dict[str, Answer], folder: Path) -> None:
    assert told[name].status == 0, told[name].err
    found = row(folder, name)
    assert found["device"] == "no GPU (pretended)"
    assert all(each["metric"] == "mAP@all" for each in found["measurements"])


@pytest.mark.parametrize("name", ["mainstay", "hag", "hag_sign", "sdha"])
def test_steps_do_not_wait_for_the_device(name: str, told: dict[str, Answer]) -> None:
    assert told[name].waited("attacks/ascent.py", "attacks/attack.py") == 0


@pytest.mark.parametrize("name", [str(name) for name in HashLoss])
def test_losses_do_not_wait_for_the_device(name: str, told: dict[str, Answer]) -> None:
    assert told[name].waited("hashing/losses.py", "hashing/centres.py") == 0
