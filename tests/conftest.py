"""What several rooms share: the command line in this process, complete configurations, and finished runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import settings
from omegaconf import MISSING

from sstune import validation
from sstune.cli import main
from sstune.composition import request
from sstune.schema import COMMANDS, GROUPS, Gradient, RunConfig, traits_of

settings.register_profile("patient", deadline=None)  # how long an example takes, the machine decides
settings.load_profile("patient")

SMALL = ["dataset.test_fraction=0.8", "dataset.val_fraction=0.2", "threads=1", "device=cpu"]
RECIPE = ["epochs=1", "batch_size=64"]
LEARNS = ["epochs=4", "batch_size=32", "optimizer.lr=0.05"]  # two seconds to 80 % of the test images


class Answer(NamedTuple):
    """What a command line gave."""

    status: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return self.err.splitlines()


Ask = Callable[..., Answer]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """``ask("train", "epochs=1")`` runs ``sstune train epochs=1`` in ``tmp_path``, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # sstune sets it; set here, it is put back afterwards
    monkeypatch.delenv("SSTUNE_DEBUG", raising=False)

    def ask(*arguments: str) -> Answer:
        capsys.readouterr()
        status = main(arguments)
        return Answer(status, *capsys.readouterr())

    return ask


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One CPU thread in this process, as it was before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def small() -> list[str]:
    """Settings that make training on the digits a matter of half a second: 287 images, 72 for validation."""
    return [*SMALL, *RECIPE]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``finished("finetune", "rule=usf", ...)``: directory of that finished run on the small digits.

    Each is made once per session: use them, leave them as they are.
    """
    out = tmp_path_factory.mktemp("finished")

    @functools.cache
    def finished(command: str, *overrides: str) -> Path:
        from sstune.commands import execute

        return execute(request(command, [*SMALL, f"out={out}", *overrides])).directory

    return finished


@pytest.fixture(scope="session")
def trained(finished: Callable[..., Path]) -> Path:
    """A finished BP run that has learnt: about 80 % of 1,438 test images."""
    return finished("train", *LEARNS)


@pytest.fixture(scope="session")
def finetuned(finished: Callable[..., Path], trained: Path) -> Path:
    """A finished brsf run that starts from ``trained``."""
    return finished("finetune", f"init_from={trained}", "rule=brsf", *RECIPE)


# Values for fields that have no default, and the name behind a group's option where it differs.
_GIVEN: dict[str, Any] = {
    "label": "d",
    "mean": [0.5],
    "std": [0.25],
    "root": ".",
    "eps": ["8/255"],
    "lr": 0.1,
    "milestones": [1],
    "epochs": 2,
    "batch_size": 8,
}
_NAMES = {
    ("backbone", "plain"): "resnet20",
    ("backbone", "convnet"): "resnet18",
    ("backbone", "vit"): "vit_tiny",
    ("dataset", "torchvision"): "cifar10",
    ("dataset", "downloaded_folder"): "imagenette",
    ("rule", "plain"): "usf",
}

Complete = Callable[..., RunConfig]


@pytest.fixture(scope="session")
def complete() -> Complete:
    """``complete("train", rule="brsf", **fields)``: a valid configuration, made without Hydra."""

    def fill(group: str, name: str) -> Any:
        kind = GROUPS[group][name]
        given = {}
        for item in fields(kind):
            if item.default is MISSING or (item.default is NO_DEFAULT and item.default_factory is NO_DEFAULT):
                given[item.name] = (
                    _NAMES.get((group, name), name) if item.name == "name" else _GIVEN[item.name]
                )
        if group == "attack" and not traits_of(name).uses_gradient:
            given["gradient"] = [Gradient.none]
        return kind(**given)

    def complete(command: str = "finetune", **changes: Any) -> RunConfig:
        groups = {}
        tasks = traits_of(changes.get("attack", "fgsm")).tasks
        changes.setdefault("task", "classification" if tasks is None else tasks[0])
        for group, options in GROUPS.items():
            name = changes.pop(group, "fgsm" if group == "attack" else next(iter(options)))
            groups[group] = fill(group, name)
        values = {"epochs": 2, "batch_size": 8, **groups, **changes}
        config = COMMANDS[command](**values)
        assert list(validation.problems(config)) == []
        return config

    return complete
