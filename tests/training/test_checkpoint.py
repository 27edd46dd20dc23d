from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sstune import rules
from sstune.composition import compose
from sstune.schema import BrsfConfig, ClassificationConfig, Redraw, Scale
from sstune.tasks import Task
from sstune.tasks.classification import Classification
from sstune.training import Learner, Progress, load, save


class Remembers(Classification):
    """A task whose loss has a state, as one with a bank of codes."""

    def __init__(self) -> None:
        super().__init__(ClassificationConfig("classification"), 3)
        self.bank = torch.zeros(4)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"bank": self.bank}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.bank.copy_(state["bank"])


def learner_of(network: nn.Module, optimizer: torch.optim.Optimizer, task: Task | None = None) -> Learner:
    made: Any = network
    return Learner(compose("train"), made, task or Remembers(), optimizer, torch.device("cpu"))


def build(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A net with BatchNorm, brsf feedback and momentum: every kind of state there is."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    network.to(memory_format=torch.channels_last)
    rules.convert(network, BrsfConfig(name="brsf", scale=Scale.unit, redraw=Redraw.step), seed)
    return network, torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True)


def step(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    rules.begin_step(network)
    optimizer.zero_grad()
    network(torch.rand(5, 1, 8, 8)).square().sum().backward()
    optimizer.step()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.pt"


def test_what_is_loaded_goes_on_bit_by_bit(path: Path) -> None:
    network, optimizer = build(0)
    step(network, optimizer)
    best = {"epoch": 1, "val_score": 0.3, "val": {"correct": 3}, "network": network.state_dict()}
    progress = Progress(1, 2, {"loss": 0.1}, [{"epoch": 1}], [{"angle": 3.0}], best, seconds=1.5)
    task = Remembers()
    task.bank += 7
    save(path, "identity", progress, learner_of(network, optimizer, task))
    step(network, optimizer)
    step(network, optimizer)

    other, its_optimizer = build(1)
    torch.manual_seed(17)
    learner = learner_of(other, its_optimizer)
    restored = load(path, "identity", learner)
    assert restored is not None
    assert torch.equal(learner.task.state_dict()["bank"], task.bank)
    for item in fields(Progress):
        if item.name != "best":
            assert getattr(restored, item.name) == getattr(progress, item.name)
    assert set(restored.best["network"]) == set(network.state_dict())
    for feedback in rules.feedback_layers(other).values():
        feedback.feedback.seed = 0  # the seed is configuration, not state
    step(other, its_optimizer)
    step(other, its_optimizer)
    for name, value in network.state_dict().items():
        theirs = other.state_dict()[name]
        assert torch.equal(value, theirs) if isinstance(value, torch.Tensor) else value == theirs, name


def test_nothing_there_is_none(path: Path) -> None:
    assert load(path, "identity", learner_of(*build(0))) is None


def test_a_checkpoint_of_an_earlier_version_is_gone_on_from(path: Path) -> None:
    """It knew accuracy only, and no state of a task."""
    network, optimizer = build(0)
    history = [{"epoch": 1, "val_accuracy": 0.25}, {"epoch": 2, "val_accuracy": 0.75}]
    progress = Progress(2, 3, {"loss": 9.5, "score": 6.0, "seen": 8}, history, best={"network": None})
    plain = Classification(ClassificationConfig("classification"), 3)
    learner = learner_of(network, optimizer, plain)
    save(path, "identity", progress, learner)
    state = torch.load(path, weights_only=True)
    del state["task"]
    state["progress"]["totals"] = {"loss": 9.5, "correct": 6, "seen": 8}
    state["progress"]["best"] = {"epoch": 2, "val_correct": 3, "network": network.state_dict()}
    torch.save(state, path)
    found = load(path, "identity", learner)
    assert found is not None
    assert found.totals == progress.totals
    assert (found.best["val_score"], found.best["val"]) == (0.75, {"correct": 3})


Damage = Callable[[Path], None]


def without(*keys: str | int) -> Damage:
    """Take a key out, and save what is left as torch does: no checksum tells."""

    def damage(path: Path) -> None:
        state = torch.load(path, weights_only=True)
        owner = state
        for key in keys[:-1]:
            owner = owner[key]
        del owner[keys[-1]]
        torch.save(state, path)

    return damage


def changed(key: str, value: object) -> Damage:
    """Put another value in its place."""

    def damage(path: Path) -> None:
        torch.save({**torch.load(path, weights_only=True), key: value}, path)

    return damage


def flipped(path: Path) -> None:
    """A bit of a weight is another: ``torch.load`` does not look at checksums."""
    content = bytearray(path.read_bytes())
    content[content.index(build(0)[0].state_dict()["0.weight"].numpy().tobytes()[:16]) + 5] ^= 1
    path.write_bytes(content)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(b""),
        flipped,
        without("optimizer"),
        without("rng"),
        without("task"),
        without("task", "bank"),
        changed("task", {"bank": torch.zeros(5)}),
        without("network", "0.weight"),
        without("network", "4.feedback._extra_state"),
        without("progress", "best"),
        without("progress", "best", "network", "0.weight"),
        without("optimizer", "param_groups", 0, "momentum"),
        changed("network", torch.zeros(3)),
        changed("optimizer", {"state": {}, "param_groups": []}),
        changed("rng", torch.zeros(3)),
        changed("identity", "b" * 64),
        lambda path: torch.save(torch.zeros(3), path),
        lambda path: torch.save([1], path),
        lambda path: path.write_text("text"),
        directory,
    ],
)
def test_what_is_damaged_is_set_aside_and_loads_nothing(
    path: Path, damage: Damage, capsys: pytest.CaptureFixture[str]
) -> None:
    network, optimizer = build(0)
    best = {"epoch": 1, "val_score": 0.3, "val": {"correct": 3}, "network": network.state_dict()}
    save(path, "a" * 64, Progress(1, 2, {}, [{"epoch": 1}], best=best), learner_of(network, optimizer))
    damage(path)
    network, optimizer = build(1)
    before = copy.deepcopy([network.state_dict(), optimizer.state_dict(), torch.get_rng_state()])
    assert load(path, "a" * 64, learner_of(network, optimizer)) is None
    after = [network.state_dict(), optimizer.state_dict(), torch.get_rng_state()]
    assert repr(before) == repr(after)
    assert os.listdir(path.parent) == ["damaged.checkpoint.pt"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sstune: {path}: cannot be used (")


def test_the_file_holds_only_tensors_and_plain_python(path: Path) -> None:
    network, optimizer = build(0)
    step(network, optimizer)
    save(path, "identity", Progress(), learner_of(network, optimizer))
    state = torch.load(path, weights_only=True)
    assert set(state) == {"identity", "progress", "network", "optimizer", "task", "rng", "rng_cuda"}
    assert os.listdir(path.parent) == ["checkpoint.pt"]


def test_a_failure_while_saving_leaves_the_previous_state(path: Path) -> None:
    network, optimizer = build(0)
    save(path, "identity", Progress(step=1), learner_of(network, optimizer))
    unpicklable = Progress(epoch=2, best={"network": lambda: None})
    with pytest.raises(Exception, match="pickle"):
        save(path, "identity", unpicklable, learner_of(network, optimizer))
    restored = load(path, "identity", learner_of(network, optimizer))
    assert restored is not None
    assert restored.step == 1
    assert os.listdir(path.parent) == ["checkpoint.pt"]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        torch.AcceleratorError("CUDA error: out of memory"),
        torch.AcceleratorError("CUDA error: unspecified launch failure"),
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    ],
)
def test_a_device_that_fails_is_no_damage_of_the_file(
    path: Path, error: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, optimizer = build(0)
    step(network, optimizer)
    save(path, "identity", Progress(step=1), learner_of(network, optimizer))

    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(optimizer, "load_state_dict", fail)
    with pytest.raises(MemoryError, match=str(error)[:20]):
        load(path, "identity", learner_of(network, optimizer))
    assert os.listdir(path.parent) == [path.name]
