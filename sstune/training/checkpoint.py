"""The state of a training run between two steps: tensors and plain Python only."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from sstune.runs import atomic_write


@dataclass
class Progress:
    """Where training stands, besides the network and the optimiser.

    ``epoch`` and ``step`` (within the epoch) name the next step. ``totals`` are the running sums of the
    epoch; ``history`` has one entry per finished epoch; ``best`` is the epoch chosen on validation with
    its network state, ``average`` the state of the averaged weights.
    """

    epoch: int = 0
    step: int = 0
    totals: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    alignment: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    average: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def save(
    path: Path,
    identity: str,
    progress: Progress,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write the whole state atomically: a kill or a full disk leaves the previous checkpoint."""
    state = {
        "identity": identity,
        "progress": {item.name: getattr(progress, item.name) for item in fields(progress)},
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "rng_cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }
    with atomic_write(path) as temporary:
        torch.save(state, temporary)


def load(
    path: Path, identity: str, network: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> Progress | None:
    """Restore the state saved at ``path``; None where there is none.

    Raises:
        RuntimeError: the checkpoint is another run's.
    """
    if not path.exists():
        return None
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["identity"] != identity:
        raise RuntimeError(f"{path} belongs to run {state['identity'][:12]}, not {identity[:12]}")
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"])
    if state["rng_cuda"] is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["rng_cuda"])
    return Progress(**state["progress"])
