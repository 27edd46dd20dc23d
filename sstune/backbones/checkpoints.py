"""Weights from files that others made: unwrap them, and say exactly what did not fit."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sstune.backbones.network import Network
from sstune.finite import first_not_finite
from sstune.schema import RequestError

_WRAPPERS = ("state_dict", "model")
_PREFIX = "module."


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file by name, unwrapped from ``state_dict``/``model`` and ``module.``.

    Loads safetensors, and other files with ``weights_only``: neither can run code.

    Raises:
        RequestError: not a checkpoint, or one that holds no tensors.
    """
    try:
        content: Any = _content(path)
    except Exception as error:  # the unpickler raises nearly anything on a damaged or foreign file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RequestError(
            f"init_from: {path} is not a checkpoint that can be read safely ({reason})"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise RequestError(f"init_from: {path} holds no state dict (a mapping of names to tensors)")
    return {
        str(name).removeprefix(_PREFIX): value for name, value in content.items() if isinstance(value, Tensor)
    }


def _content(path: Path) -> Any:
    if path.suffix != ".safetensors":
        return torch.load(path, map_location="cpu", weights_only=True)
    from safetensors.torch import load_file  # comes with timm

    return load_file(path)


def load_third_party(network: Network, path: Path) -> list[str]:
    """Load a third-party file into ``network.backbone``; returns notes on what was replaced.

    A head of another width keeps its new weights, and that is said. BatchNorm's step counters may be
    absent (older files have none).

    Raises:
        RequestError: any other key is missing, unexpected or of another shape, and the keys are listed; or a
            weight is NaN or infinite.
    """
    state = read_state_dict(path)
    own = network.backbone.state_dict()
    notes = []
    head = f"{network.aliases['head']}.*"
    for name in [name for name in own if fnmatchcase(name, head) and name in state]:
        if state[name].shape[1:] == own[name].shape[1:] and state[name].shape != own[name].shape:
            notes.append(f"{name}: new, {_shape(own[name])} (the file has {_shape(state[name])})")
            state[name] = own[name]
    for name in own:
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, own[name])
    faults = [f"missing {name}" for name in own if name not in state]
    faults += [f"unexpected {name}" for name in state if name not in own]
    faults += [
        f"{name} is {_shape(state[name])}, expected {_shape(own[name])}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if faults:
        shown = ", ".join(faults[:8]) + (f", and {len(faults) - 8} more" if len(faults) > 8 else "")
        raise RequestError(f"init_from: {path} does not fit the backbone: {shown}")
    constant = {name for name, value in own.items() if first_not_finite([(name, value)])}  # -inf in a mask
    loaded = ((name, state[name].to(own[name].dtype)) for name in own if name not in constant)
    if found := first_not_finite(loaded):
        raise RequestError(f"init_from: {path} has weights that are no numbers: {found}")
    network.backbone.load_state_dict(state)
    return notes


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
