"""Deliberate mistakes that the pretence must catch, and what it must let pass; JSON on stdout."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from pretence import pretend
from pretended import CUDA, LEDGER
from torch import nn
from torch.nn.functional import cross_entropy

Calls = dict[str, Callable[[], Any]]


def refused() -> Calls:
    """What CUDA refuses."""
    x, host = torch.ones(4, 3, device="cuda"), torch.ones(4, 3)
    linear, none = nn.Linear(3, 2).to("cuda"), torch.zeros(4, 1, dtype=torch.long)
    return {
        "CUDA + CPU": lambda: x + host,
        "CPU + CUDA": lambda: host + x,
        "CUDA scalar + CPU": lambda: host + x.sum(),
        "CPU images into a CUDA layer": lambda: linear(host),
        "matmul": lambda: x @ host.T,
        "cat": lambda: torch.cat([x, host]),
        "stack of scalars": lambda: torch.stack([x.sum(), host.sum()]),
        "CUDA index into CPU": lambda: host[none[:, 0].to("cuda")],
        "CUDA mask into CPU": lambda: host[x > 0],
        "assign CUDA into CPU by index": lambda: host.__setitem__(torch.tensor([0]), x[:1]),
        "assign CPU into CUDA by index": lambda: x.__setitem__(torch.tensor([0]), host[:1]),
        "index_select with a CPU index": lambda: x.index_select(0, torch.tensor([0])),
        "gather with a CPU index": lambda: x.gather(1, none),
        "CPU labels": lambda: cross_entropy(x, none[:, 0]),
        "CPU generator": lambda: x.uniform_(generator=torch.Generator()),
        "CUDA generator on CPU": lambda: host.uniform_(generator=torch.Generator("cuda")),
        "CPU generator in a factory": lambda: torch.rand(3, device="cuda", generator=torch.Generator()),
        "numpy": lambda: x.numpy(),
        "in place on CPU": lambda: host.add_(x),
        "set_device without an index": lambda: torch.cuda.set_device(torch.device("cuda")),
        "a device too many": lambda: torch.cuda.set_device(1),
    }


def allowed() -> Calls:
    """What CUDA does."""
    x, host, linear = torch.ones(4, 3, device="cuda"), torch.ones(4, 3), nn.Linear(3, 2).to("cuda")

    def step() -> None:
        optimizer = torch.optim.SGD(linear.parameters(), lr=0.1, momentum=0.9, fused=True)
        with torch.autocast("cuda", torch.bfloat16):
            y = linear(x)
        assert y.dtype == torch.bfloat16
        y.float().sum().backward()
        assert linear.weight.grad.device == CUDA
        optimizer.step()

    return {
        "CPU index": lambda: x[torch.tensor([0, 1])],
        "CPU scalar": lambda: x * torch.tensor(2.0),
        "mask": lambda: x[x > 0],
        "fill by mask": lambda: x.__setitem__(x > 5, 0.0),
        "item": lambda: float(x.sum()),
        "truth": lambda: bool((x > 0).all()),
        "tolist": lambda: x.tolist(),
        "cpu": lambda: x.cpu(),
        "to cuda": lambda: host.to("cuda"),
        "to cuda, pinned": lambda: host.pin_memory().to("cuda", non_blocking=True),
        "tensor": lambda: torch.tensor([1.0, 2.0], device="cuda"),
        "full": lambda: torch.full((), 1.0, device="cuda"),
        "where": lambda: torch.where(x > 0, x, 1.0),
        "a training step": step,
    }


def main() -> None:
    pretend()
    caught, waits = {}, {}
    for name, call in refused().items():
        try:
            call()
        except (RuntimeError, TypeError, ValueError) as error:
            caught[name] = str(error)
        else:
            caught[name] = ""
    for name, call in allowed().items():
        LEDGER.waits.clear()
        call()
        waits[name] = LEDGER.total()
    print(json.dumps({"caught": caught, "waits": waits}), flush=True)


if __name__ == "__main__":
    main()
    # Right after a backward pass the autograd thread of the device may still ask for the interpreter; if that
    # ends meanwhile, C++ aborts the process.
    os._exit(0)
