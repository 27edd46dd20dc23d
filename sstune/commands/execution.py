"""What every command does around its work: answer from the row, lock, stop on a signal, record failure."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from sstune.interrupt import StopFlag, stop_flag
from sstune.runs import Run, write_json
from sstune.schema import RequestError

Work = Callable[[Run, torch.device, StopFlag], dict[str, Any]]


def once(run: Run, work: Work) -> dict[str, Any]:
    """Do ``work`` unless the run is done, and return its row.

    Args:
        work: measures what the row shall hold.

    Raises:
        Locked: another process works on this run.
        Stopped: a signal came; running the same line again goes on.
    """
    device = resolve_device(run.config.device)
    if run.config.threads is not None:
        torch.set_num_threads(run.config.threads)
    if (row := run.result()) and not run.config.force:
        print(f"{run.directory}: done already", flush=True)
        return row
    with run.lock(), stop_flag() as stop:
        if (row := run.result()) and not run.config.force:  # finished while we waited to look
            return row
        print(f"{run.directory}", flush=True)
        run.begin()
        began = time.perf_counter()
        try:
            measured = work(run, device, stop)
        except Exception as error:
            if not isinstance(error, RequestError):
                traceback.print_exc()  # a sweep would show it only after its last cell
            failure = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
            with suppress(OSError):  # the disk may be what failed
                write_json(run.directory / "failure.json", failure)
            if stop:  # even if saving failed, a sweep must not go on to its next cell
                raise stop.stop() from error
            raise
        measured.setdefault("seconds", time.perf_counter() - began)
        row = run.finish(
            **measured,
            device=_device_name(device),
            threads=torch.get_num_threads(),
            deterministic=device.type == "cpu" or torch.are_deterministic_algorithms_enabled(),
        )
        if stop:  # came in the last step: this run is done, but a sweep's next cell must not begin
            raise stop.stop()
        return row


def resolve_device(name: str) -> torch.device:
    """``auto``: CUDA when present, otherwise the CPU.

    Raises:
        RequestError: CUDA is asked for and absent.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise RequestError(f"device: {name} is not available here, use device=cpu or device=auto")
    torch.backends.fp32_precision = "ieee"  # type: ignore[attr-defined]  # no TF32 in what is measured
    return torch.device(name)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
