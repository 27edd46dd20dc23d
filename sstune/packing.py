"""Per-sample results encoded as text for rows, from which samples can be paired later."""

from __future__ import annotations

import base64

import numpy as np
import numpy.typing as npt


def pack(flags: npt.ArrayLike) -> str:
    """(n,) bool -> base64 of its bits, first sample first, the last byte filled with zeros."""
    return base64.b64encode(np.packbits(np.asarray(flags, dtype=bool)).tobytes()).decode("ascii")


def unpack(text: str, n: int) -> npt.NDArray[np.bool_]:
    """Inverse of :func:`pack`: (n,) bool.

    Raises:
        ValueError: ``text`` is not base64, or not of ``n`` flags.
    """
    found = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    if len(found) != -(-n // 8):
        raise ValueError(f"{len(found)} bytes are not the outcomes of {n} samples")
    return np.unpackbits(found, count=n).astype(bool)


def pack_values(values: npt.ArrayLike) -> str:
    """(n,) floats -> base64 of little-endian float32, first sample first."""
    return base64.b64encode(np.asarray(values, dtype="<f4").tobytes()).decode("ascii")


def unpack_values(text: str, n: int) -> npt.NDArray[np.float64]:
    """Inverse of :func:`pack_values`: (n,) floats of float32 precision.

    Raises:
        ValueError: ``text`` is not base64, not of ``n`` values, or a value is outside [0, 1].
    """
    content = base64.b64decode(text, validate=True)
    if len(content) != 4 * n:
        raise ValueError(f"{len(content)} bytes are not the values of {n} samples")
    values = np.frombuffer(content, dtype="<f4").astype(np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("a value of a sample is outside [0, 1]")
    return values
