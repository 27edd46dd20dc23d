"""Per-sample outcomes as text, so that a row holds them and any pairing can be made from rows later."""

from __future__ import annotations

import base64

import numpy as np
import numpy.typing as npt


def pack(flags: npt.ArrayLike) -> str:
    """(n,) bool -> base64 of its bits, first sample first, the last byte filled with zeros."""
    return base64.b64encode(np.packbits(np.asarray(flags, dtype=bool)).tobytes()).decode("ascii")


def unpack(text: str, n: int) -> npt.NDArray[np.bool_]:
    """The (n,) bool that :func:`pack` made ``text`` of.

    Raises:
        ValueError: ``text`` is no base64, or of another number of flags.
    """
    found = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    if len(found) != -(-n // 8):
        raise ValueError(f"{len(found)} bytes are not the outcomes of {n} samples")
    return np.unpackbits(found, count=n).astype(bool)


def pack_values(values: npt.ArrayLike) -> str:
    """(n,) float -> base64 of float32, little endian."""
    return base64.b64encode(np.asarray(values, dtype="<f4").tobytes()).decode("ascii")
