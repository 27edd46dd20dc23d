"""Precision of float32 products: float32 in all measurements, TF32 in training with ``precision=tf32``.

Each backend is set separately: torch's global setting does not override a backend's own, and torch.compile
sets that of CUDA matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sstune.schema import Precision, RequestError

_KINDS = {
    "cuda": ("cuda.matmul", "cudnn.conv", "cudnn.rnn"),
    "cpu": ("mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn"),
}


def exact_products() -> None:
    """Compute float32 products in float32, everywhere in this process."""
    backends: Any = torch.backends
    backends.fp32_precision = "ieee"
    for device in _KINDS:
        _set(device, "ieee")


@contextmanager
def training_arithmetic(precision: Precision, benchmark: bool) -> Iterator[None]:
    """Inside, CUDA computes float32 products in TF32 if that is the training's precision.

    Args:
        benchmark: let cuDNN find its fastest algorithm for each batch size. For training only, where nearly
            all batches have one size; in attacks the size varies.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = benchmark
    if precision is Precision.tf32:
        _set("cuda", "tf32")
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
        if precision is Precision.tf32:
            _set("cuda", "ieee")


def check_exact(device: torch.device) -> None:
    """Check that products on ``device`` are computed in float32.

    Raises:
        RuntimeError: a backend uses another precision; names it.
    """
    for kind in _KINDS.get(device.type, ()):
        if (found := _backend(kind).fp32_precision) not in ("ieee", "none"):
            raise RuntimeError(
                f"torch.backends.{kind}.fp32_precision is {found}, but measurements need float32: "
                f"call sstune.arithmetic.exact_products()"
            )


@contextmanager
def refusing_what_cannot_repeat() -> Iterator[None]:
    """Inside, an operation without a deterministic CUDA algorithm raises ``RequestError``.

    Raises:
        RequestError: names the operation.
    """
    try:
        yield
    except RuntimeError as error:
        name, found, _ = str(error).partition(" does not have a deterministic implementation")
        if not found:
            raise
        raise RequestError(
            f"deterministic: this network needs {name}, which is not deterministic on CUDA; "
            f"use deterministic=false or device=cpu"
        ) from error


def _set(device: str, precision: str) -> None:
    if device == "cuda":  # torch's older flags raise when read while they disagree with the newer ones
        on = precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on
    for kind in _KINDS[device]:
        _backend(kind).fp32_precision = precision


def _backend(kind: str) -> Any:
    library, product = kind.split(".")
    return getattr(getattr(torch.backends, library), product)
