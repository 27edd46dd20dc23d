"""Published weights, as torch.hub and timm's hub keep them: random numbers in files of the right names."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file

State = dict[str, torch.Tensor]

# What would lead to weights elsewhere, or to the network.
_ELSEWHERE = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TIMM_USE_OLD_CACHE", "XDG_CACHE_HOME", "HF_TOKEN")


def random_state(module: torch.nn.Module) -> State:
    """Random weights of reasonable size for all of a module, batch statistics included."""
    stream = torch.Generator().manual_seed(0)
    state = {}
    for key, value in module.state_dict().items():
        if not value.is_floating_point():
            state[key] = value.clone()
        elif value.dim() < 2:
            state[key] = torch.rand(value.shape, generator=stream) + 0.5
        else:
            state[key] = torch.randn(value.shape, generator=stream) / value[0].numel() ** 0.5
    return state


@pytest.fixture(scope="session")
def alexnet_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, State]]:
    """A TORCH_HOME with AlexNet's weights (244 MB), and these."""
    home = tmp_path_factory.mktemp("torch-home")
    state = random_state(torchvision.models.alexnet())
    path = home / "hub/checkpoints/alexnet-owt-7be5be79.pth"
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    yield home, state
    path.unlink()


@pytest.fixture(scope="session")
def timm_states(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, State]]:
    """An HF_HOME with weights of ResNet-18 and ViT-tiny, laid out as the hub's client does; and these."""
    import timm

    home = tmp_path_factory.mktemp("hf-home")
    states = {}
    for name in ("resnet18", "vit_tiny_patch16_224"):
        model = timm.create_model(name)
        states[name] = random_state(model)
        repository = home / "hub" / f"models--{model.pretrained_cfg['hf_hub_id'].replace('/', '--')}"
        revision = "0123456789abcdef0123456789abcdef01234567"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs/main").write_text(revision)
        (repository / "snapshots" / revision).mkdir(parents=True)
        save_file(states[name], repository / "snapshots" / revision / "model.safetensors")
    return home, states


Offline = Callable[..., Any]


@pytest.fixture(scope="session")
def offline() -> Offline:
    """``offline(program, hf_home, *arguments)``: what a Python program prints that finds only that cache.

    A process of its own, as the hub's client reads its environment while it is imported.
    """

    def offline(program: str, hf_home: Path, *arguments: Path) -> str:
        environment = {key: value for key, value in os.environ.items() if key not in _ELSEWHERE}
        environment |= {
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(hf_home),
            "TORCH_HOME": str(hf_home),
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        command = [sys.executable, "-c", program, *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return offline
