"""Common frame of all commands: return an existing row, lock, stop on a signal, record a failure."""

from __future__ import annotations

import os
import platform
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import torch

from sstune.arithmetic import exact_products, refusing_what_cannot_repeat
from sstune.interrupt import StopFlag, stop_flag
from sstune.locking import Locked
from sstune.row import Measured, Row
from sstune.runs import Run
from sstune.schema import Precision, RequestError, RunConfig
from sstune.storage import write_json
from sstune.training import World, init_distributed

Work = Callable[[Run, torch.device, StopFlag], Measured]


def run_once(run: Run, work: Work, wait: bool = False) -> Row:
    """Do ``work`` unless the run is done, and return its row.

    Args:
        work: does the work, and returns the measured keys of the row.
        wait: wait for another process that works on this run, instead of raising ``Locked``.

    Raises:
        Locked: another process works on this run.
        Stopped: a signal came; the same command resumes the run.
    """
    world = init_distributed()
    if row := world.broadcast(run.answer()):
        print(f"{run.directory}: done already", flush=True)
        return row
    device = prepare(run.config, world)
    with ExitStack() as stack:
        _lock(run, wait, world, stack)
        stop = stack.enter_context(stop_flag())
        if row := world.broadcast(run.answer()):  # another process finished it while we waited for the lock
            return row
        try:
            row = _carry_out(run, work, device, stop, world)
        except Exception as error:
            _record(run, error)
            if stop:  # even if saving failed, a sweep must not start its next cell
                raise stop.stop() from error
            raise
        if stop:  # it came in the last step: the run is done, but a sweep must not start its next cell
            raise stop.stop()
        return row


def _lock(run: Run, wait: bool, world: World, stack: ExitStack) -> None:
    """Lock the run until ``stack`` closes; in the main process, whose error all processes raise."""
    reason = None
    if world.is_main:
        try:
            stack.enter_context(run.lock(wait))
        except Locked as error:
            reason = str(error)
    if reason := world.broadcast(reason):
        raise Locked(reason)


def _carry_out(run: Run, work: Work, device: torch.device, stop: StopFlag, world: World) -> Row:
    """Do the work and write its row, which is returned in every process."""
    print(f"{run.directory}", flush=True)
    if world.is_main:
        run.begin()
    world.wait()
    began = time.perf_counter()
    with refusing_what_cannot_repeat():
        measured = work(run, device, stop)
    measured.setdefault("seconds", time.perf_counter() - began)
    measured |= {
        "device": _device_name(device),
        "threads": torch.get_num_threads(),
        "deterministic": device.type == "cpu" or torch.are_deterministic_algorithms_enabled(),
    }
    row: Row | None = world.broadcast(run.finish(**measured) if world.is_main else None)
    assert row is not None
    return row


def _record(run: Run, error: Exception) -> None:
    """Write ``failure.json``, and print the traceback of an unexpected error.

    A wrong request and a closed output (``| head``) are not recorded. Diverged training and a full disk are
    expected errors: their message is one line.
    """
    if isinstance(error, RequestError | BrokenPipeError):
        return
    failure = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    path = run.directory / "failure.json"
    with suppress(OSError):  # the disk may be what failed
        if not path.exists():  # with several processes, the first failure is the cause
            write_json(path, failure)
    if not isinstance(error, OSError | FloatingPointError):
        with suppress(OSError):  # the terminal may be closed
            traceback.print_exc()


def prepare(config: RunConfig, world: World) -> torch.device:
    """Set up this process's arithmetic, and return its device (``auto``: CUDA when present, else the CPU).

    Raises:
        RequestError: the GPU does not exist, or TF32 without CUDA.
    """
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    device = _device(config.device, world)
    if config.precision is Precision.tf32 and device.type == "cpu":
        raise RequestError("precision: tf32 needs a CUDA device, use float32 or bf16")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    exact_products()
    torch.use_deterministic_algorithms(config.deterministic)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def _device(name: str, world: World) -> torch.device:
    """The CPU, or a GPU with its number: one per process under torchrun, otherwise the current one.

    With ``device=cpu``, CUDA is never initialised.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RequestError(f"device: {name} is not available, use device=cpu or device=auto")
    n = torch.cuda.device_count()
    number = int(name.removeprefix("cuda:")) if ":" in name else None
    if world.size > 1:
        if number is not None or world.local_rank >= n:
            raise RequestError(f"device: each process needs its own GPU (this machine has {n}), not {name}")
        number = world.local_rank
    if number is None:
        number = torch.cuda.current_device()
    if number >= n:
        known = "only cuda:0" if n == 1 else f"cuda:0 to cuda:{n - 1}"
        raise RequestError(f"device: {name} does not exist; this machine has {known}")
    return torch.device("cuda", number)


def _device_name(device: torch.device) -> str:
    """Name of the GPU, or of the CPU with the instruction set that torch uses, on which rounding depends."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({_cpu_model()}, {torch.backends.cpu.get_cpu_capability()})"


def _cpu_model() -> str:
    with suppress(OSError):  # Linux only
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
