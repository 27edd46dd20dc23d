"""How float32 products are computed: exactly in all that is measured, in TF32 in training that asks for it.

Each kind of product is set by itself. A setting for all of them leaves alone those that were set one by one,
and torch.compile sets that of matrix products on CUDA, to what it finds.
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
        benchmark: let cuDNN try out which of its algorithms is fastest, once for each size of a batch. It is
            for training alone, where nearly all batches are of one size; in attacks they are of any.
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
    """See that what is measured on ``device`` is measured in float32.

    Raises:
        RuntimeError: products would be computed in another precision; names which.
    """
    for kind in _KINDS.get(device.type, ()):
        if (found := _backend(kind).fp32_precision) not in ("ieee", "none"):
            raise RuntimeError(
                f"torch.backends.{kind}.fp32_precision is {found}, but figures are measured in float32: "
                f"call sstune.arithmetic.exact_products()"
            )


@contextmanager
def refusing_what_cannot_repeat() -> Iterator[None]:
    """Inside, an operation that CUDA has no deterministic algorithm for is a request that cannot be met.

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
            f"deterministic: this network needs {name}, which does not repeat bit for bit on CUDA; "
            f"use deterministic=false or device=cpu"
        ) from error


def _set(device: str, precision: str) -> None:
    if device == "cuda":  # torch's older switches, which raise when asked while they say otherwise
        on = precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on
    for kind in _KINDS[device]:
        _backend(kind).fp32_precision = precision


def _backend(kind: str) -> Any:
    library, product = kind.split(".")
    return getattr(getattr(torch.backends, library), product)
