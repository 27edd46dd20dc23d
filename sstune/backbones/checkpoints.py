"""Third-party checkpoint files: reading, unwrapping and loading, with errors that list every misfit."""

from __future__ import annotations

import re
import stat
import warnings
import zipfile
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sstune.backbones.network import Network
from sstune.finite import first_not_finite
from sstune.schema import RequestError, shown
from sstune.storage import check_zip, kind_of

_WRAPPERS = ("state_dict", "model")
_PREFIX = "module."
_SHOWN = 100  # characters of the list of misfits; the others are counted
_MAX_EXPANSION = 4
_DAMAGE = (OSError, RuntimeError, EOFError, zipfile.BadZipFile)


def read_state_dict(path: Path, key: str = "init_from") -> dict[str, Tensor]:
    """The tensors of a checkpoint file by name, unwrapped from ``state_dict``/``model`` and ``module.``.

    Args:
        key: the configuration key that names the file, for errors.

    Raises:
        RequestError: the file is not a checkpoint or contains no tensors.
    """
    return state_dict_in(read_checkpoint(path, key), path, key)


def read_checkpoint(path: Path, key: str = "init_from") -> Any:
    """The content of a checkpoint file.

    Reads safetensors, and other files with ``weights_only``; neither executes code.

    Raises:
        RequestError: it cannot be read.
    """
    try:
        return _content(path)
    except Exception as error:  # the unpickler raises nearly anything on a damaged or foreign file
        raise RequestError(
            f"{key}: {path} is not a checkpoint that can be read safely ({_reason(error)})"
        ) from error


def state_dict_in(content: Any, path: Path, key: str = "init_from") -> dict[str, Tensor]:
    """The tensors in the content of the checkpoint file ``path``, as a new dictionary.

    Raises:
        RequestError: there are none, or some are sparse, quantized or meta tensors.
    """
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise RequestError(f"{key}: {path} holds no state dict (a mapping of names to tensors)")
    state = {
        str(name).removeprefix(_PREFIX): value for name, value in content.items() if isinstance(value, Tensor)
    }
    for name, value in state.items():
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            raise RequestError(f"{key}: {path}: {shown(name)} is not a dense tensor")
    return state


def _content(path: Path) -> Any:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # reading a FIFO or a device may block forever
        raise ValueError(f"it is a {kind_of(status)}")
    if not status.st_size:
        raise ValueError("it is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about old or unusual formats
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file  # a dependency of timm

            return load_file(path)
        _check_zip(path, status.st_size)
        return torch.load(path, map_location="cpu", weights_only=True)


def _check_zip(path: Path, size: int) -> None:
    """Check the zip of a checkpoint, whose checksums torch ignores.

    torch stores tensors uncompressed, so that a compressed file may be a decompression bomb.

    Raises:
        Exception: the entries are much larger than the file, or one of them is damaged.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        expanded = sum(entry.file_size for entry in archive.infolist())
        if expanded > _MAX_EXPANSION * size:
            raise ValueError(f"its {size:,} bytes expand to {expanded:,}")
    check_zip(path)


def _reason(error: Exception) -> str:
    """Why a file cannot be read, in short; torch's own message recommends to execute its code."""
    text = " ".join(str(error).split())
    if code := re.search(r"(?i)unsupported (?:global|class)[^.]*? (\w+(?:\.\w+)+)", text):
        return f"it imports {code[1]}, which could run code"
    if isinstance(error, OSError) and error.filename:
        return error.strerror or text
    if type(error) is ValueError:
        return shown(text[:80])
    if isinstance(error, _DAMAGE) or "Safetensor" in type(error).__name__:
        return f"damaged or truncated: {shown(text[:60])}"
    return "neither a zip of tensors nor a pickle of plain values"


def load_third_party(network: Network, path: Path) -> list[str]:
    """Load a third-party file; see :func:`load_state`."""
    return load_state(network, read_state_dict(path), path)


def load_state(network: Network, state: dict[str, Tensor], path: Path) -> list[str]:
    """Load the tensors of a file into ``network.backbone``; return notes on the head.

    A head of another width, or one that the file lacks, keeps its new weights, with a note. BatchNorm's step
    counters may be absent, as in older files.

    Raises:
        RequestError: another key is missing, unexpected or of another shape or type (the keys are listed), or
            a weight is NaN or infinite.
    """
    own = network.backbone.state_dict()
    notes = []
    head = f"{network.aliases['head']}.*"
    heads = [name for name in own if fnmatchcase(name, head)]
    if not any(name in state for name in heads) and any(name in own for name in state):
        notes += [f"{name}: new, {shape_text(own[name])} (the file has none)" for name in heads]
        state |= {name: own[name] for name in heads}
    for name in heads:
        found = state.get(name, own[name]).shape
        if found[1:] == own[name].shape[1:] and found != own[name].shape:
            notes.append(f"{name}: new, {shape_text(own[name])} (the file has {shape_text(state[name])})")
            state[name] = own[name]
    for name in own:
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, own[name])
    faults = [f"missing {name}" for name in own if name not in state]
    faults += [f"unexpected {shown(name)}" for name in state if name not in own]
    faults += [
        f"{name} holds {str(state[name].dtype).removeprefix('torch.')}, not real numbers"
        for name in own
        if name in state and own[name].is_floating_point() and not state[name].is_floating_point()
    ]
    faults += [
        f"{name} is {shape_text(state[name])}, expected {shape_text(own[name])}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if faults:
        n = max(1, sum(len(", ".join(faults[: n + 1])) <= _SHOWN for n in range(len(faults))))
        listed = ", ".join(faults[:n]) + (f", and {len(faults) - n} more" if len(faults) > n else "")
        raise RequestError(f"init_from: {path} does not fit the backbone: {listed}")
    constant = {name for name, value in own.items() if first_not_finite([(name, value)])}  # -inf in a mask
    loaded = ((name, state[name].to(own[name].dtype)) for name in own if name not in constant)
    if found := first_not_finite(loaded):
        raise RequestError(f"init_from: {path} has non-finite weights: {found}")
    network.backbone.load_state_dict(state)
    return notes


def shape_text(tensor: Tensor) -> str:
    """The shape of a tensor for messages: ``64x3x7x7``."""
    return "x".join(map(str, tensor.shape)) or "a scalar"
