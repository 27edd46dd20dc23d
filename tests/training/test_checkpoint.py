from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import nn

from sstune import rules
from sstune.schema import BrsfConfig, Redraw, Scale
from sstune.training import Progress, load, save


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
    best = {"epoch": 1, "val_correct": 3, "network": network.state_dict()}
    progress = Progress(1, 2, {"loss": 0.1}, [{"epoch": 1}], [{"angle": 3.0}], best, seconds=1.5)
    save(path, "identity", progress, network, optimizer)
    step(network, optimizer)
    step(network, optimizer)

    other, its_optimizer = build(1)
    torch.manual_seed(17)
    restored = load(path, "identity", other, its_optimizer)
    assert restored is not None
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
    assert load(path, "identity", *build(0)) is None


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
    best = {"epoch": 1, "val_correct": 3, "network": network.state_dict()}
    save(path, "a" * 64, Progress(1, 2, {}, [{"epoch": 1}], best=best), network, optimizer)
    damage(path)
    network, optimizer = build(1)
    before = copy.deepcopy([network.state_dict(), optimizer.state_dict(), torch.get_rng_state()])
    assert load(path, "a" * 64, network, optimizer) is None
    after = [network.state_dict(), optimizer.state_dict(), torch.get_rng_state()]
    assert repr(before) == repr(after)
    assert os.listdir(path.parent) == ["damaged.checkpoint.pt"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sstune: {path}: cannot be used (")


def test_the_file_holds_only_tensors_and_plain_python(path: Path) -> None:
    network, optimizer = build(0)
    step(network, optimizer)
    save(path, "identity", Progress(), network, optimizer)
    state = torch.load(path, weights_only=True)
    assert set(state) == {"identity", "progress", "network", "optimizer", "rng", "rng_cuda"}
    assert os.listdir(path.parent) == ["checkpoint.pt"]


def test_a_failure_while_saving_leaves_the_previous_state(path: Path) -> None:
    network, optimizer = build(0)
    save(path, "identity", Progress(step=1), network, optimizer)
    unpicklable = Progress(epoch=2, best={"network": lambda: None})
    with pytest.raises(Exception, match="pickle"):
        save(path, "identity", unpicklable, network, optimizer)
    restored = load(path, "identity", network, optimizer)
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
    save(path, "identity", Progress(step=1), network, optimizer)

    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(optimizer, "load_state_dict", fail)
    with pytest.raises(MemoryError, match=str(error)[:20]):
        load(path, "identity", network, optimizer)
    assert os.listdir(path.parent) == [path.name]
