"""What a folder of runs and reports holds, without what differs from one time to the next."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

DIFFERS = ("seconds", "git")  # of a row: how long it took, and the commit
PRINTED = re.compile(
    rb"[0-9a-f]{40}( \(with changes\))?(?=</dd>)|\d+ s(?=</dd>)"
)  # the same on an audit's page


def contents(folder: Path) -> dict[str, str]:
    """Every file below ``folder``, also hidden ones, with a digest of what it holds."""
    return {
        str(path.relative_to(folder)): content(path, folder)
        for path in sorted(folder.rglob("*"))
        if not path.is_dir() and "__pycache__" not in path.parts
    }


def content(path: Path, folder: Path) -> str:
    """A digest of what a file holds: bit for bit but for times, the commit and where ``folder`` is."""
    try:
        held = _held(path, folder)
    except Exception as error:  # half a file, for example: different from any whole one
        held = f"unreadable ({type(error).__name__})".encode() + path.read_bytes()
    return hashlib.sha256(held).hexdigest()


def _held(path: Path, folder: Path) -> bytes:
    if path.name == "lock":  # who held it last
        return b""
    if path.suffix == ".json":
        return json.dumps(timeless(json.loads(path.read_text())), sort_keys=True).encode()
    if path.suffix == ".pt":
        return repr(_bits(timeless(torch.load(path, map_location="cpu", weights_only=True)))).encode()
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            found = {name: value for name, value in arrays.items() if not name.endswith("/seconds")}
        return repr([(name, _bits(value)) for name, value in sorted(found.items())]).encode()
    if path.name == "history.csv":
        lines = list(csv.DictReader(io.StringIO(path.read_text())))
        return json.dumps(timeless(lines)).encode()
    held = path.read_bytes().replace(bytes(folder), b"FOLDER")
    return PRINTED.sub(b"", held) if path.name == "audit.html" else held


def timeless(value: Any) -> Any:
    """Without how long it took, and of which commit it is."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in DIFFERS}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def _bits(value: Any) -> Any:
    """Tensors and arrays as their bytes, so that equal means bit-equal."""
    if isinstance(value, torch.Tensor):
        value = value.contiguous().numpy()
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, dict):
        return [(str(key), _bits(item)) for key, item in value.items()]
    return [_bits(item) for item in value] if isinstance(value, (list, tuple)) else value


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """A phrase for each file that is missing, too much or other than expected."""
    names = sorted(found.keys() | expected.keys())
    return [
        f"{'no' if name not in found else 'leftover' if name not in expected else 'another'} {name}"
        for name in names
        if found.get(name) != expected.get(name)
    ]
