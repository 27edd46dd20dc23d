from __future__ import annotations

import os
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
    progress = Progress(
        1, 2, {"loss": 0.1}, [{"epoch": 1}], [{"angle": 3.0}], {"network": network.state_dict()}, 1.5
    )
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


def test_another_runs_state_is_refused_and_loads_nothing(path: Path) -> None:
    save(path, "a" * 64, Progress(), *build(0))
    network, optimizer = build(1)
    before = {name: torch.as_tensor(value).clone() for name, value in network.named_parameters()}
    with pytest.raises(RuntimeError, match=f"belongs to run {'a' * 12}, not {'b' * 12}"):
        load(path, "b" * 64, network, optimizer)
    assert all(torch.equal(value, before[name]) for name, value in network.named_parameters())


def test_the_file_holds_only_tensors_and_plain_python(path: Path) -> None:
    network, optimizer = build(0)
    step(network, optimizer)
    save(path, "identity", Progress(), network, optimizer)
    state = torch.load(path, weights_only=True)
    assert set(state) == {"identity", "progress", "network", "optimizer", "rng", "rng_cuda"}
    assert os.listdir(path.parent) == ["checkpoint.pt"]


def test_a_failure_while_saving_leaves_the_previous_state(path: Path) -> None:
    network, optimizer = build(0)
    save(path, "identity", Progress(epoch=1), network, optimizer)
    unpicklable = Progress(epoch=2, best={"network": lambda: None})
    with pytest.raises(Exception, match="pickle"):
        save(path, "identity", unpicklable, network, optimizer)
    restored = load(path, "identity", network, optimizer)
    assert restored is not None
    assert restored.epoch == 1
    assert os.listdir(path.parent) == ["checkpoint.pt"]
