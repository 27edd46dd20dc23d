"""A tensor that says it is on a GPU and is not, and the ledger of what makes the host wait for that GPU."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
HERE = str(Path(__file__).parent)

# The host has to know what they give, so it waits for the device.
WAITING = {
    "_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "_unique2", "unique_dim",
    "unique_consecutive", "bincount", "allclose",
}  # fmt: skip


class Ledger:
    """What made the host wait, by kind and by the program's own line."""

    def __init__(self) -> None:
        self.waits: Counter[tuple[str, str]] = Counter()
        self.on = True

    def note(self, kind: str) -> None:
        if self.on:
            self.waits[kind, where()] += 1

    def total(self) -> int:
        return sum(self.waits.values())


LEDGER = Ledger()


def where() -> str:
    """The innermost line outside torch; with the innermost one of sstune, if that is another."""
    frame, inner = sys._getframe(2), None
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(HERE) and "/torch/" not in name and not name.startswith("<"):
            line = f"{'/'.join(Path(name).parts[-3:])}:{frame.f_lineno}"
            inner = inner or line
            if "/sstune/" in name or "/scripts/" in name:
                return line if line == inner else f"{line} ({inner})"
        frame = frame.f_back
    return inner or "(backward)"


def note_waits(name: str, args: Any) -> None:
    """Note what the host must wait for; copies are noted where they are made."""
    if name in WAITING:
        LEDGER.note(name)
    elif name.startswith(("index", "_index_put_impl")) and isinstance(args[1], (list, tuple)):
        masks = [
            each for each in args[1] if isinstance(each, Tensor) and each.dtype in (torch.bool, torch.uint8)
        ]
        fills = len(args) > 2 and args[2].numel() == 1  # becomes masked_fill
        if masks and not fills:
            LEDGER.note("boolean mask")
        if any(isinstance(each, Tensor) and not isinstance(each, Pretended) for each in args[1]):
            LEDGER.note("index on the CPU")
    elif name == "repeat_interleave":
        LEDGER.note(name)


class Pretended(Tensor):
    """A tensor that says it is on cuda:0; ``held`` is the CPU tensor with its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Pretended:
        made = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=CUDA,
            requires_grad=False,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from pretence import dispatch

        return dispatch(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"Pretended({self.held!r})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it first."
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        LEDGER.note("saved")
        return self.held.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copy = self.detach().clone()
        if getattr(self, "_is_param", False):
            copy = torch.nn.Parameter(copy, self.requires_grad)
        else:
            copy.requires_grad_(self.requires_grad)
        memo[id(self)] = copy
        return copy
