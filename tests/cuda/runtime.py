"""Starts Python with a stand-in for the CUDA runtime, which gcc makes of ``no_gpu_runtime.c``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import torch

HERE = Path(__file__).parent


def missing() -> str:
    """Why it cannot be made here; empty if it can."""
    if shutil.which("gcc") is None:
        return "needs gcc"
    if torch.version.cuda is None or _headers() is None:
        return "needs a CUDA build of torch, with triton"
    return ""


def _headers() -> Path | None:
    """CUDA's own, which triton brings along."""
    triton = find_spec("triton")
    if triton is None or triton.origin is None:
        return None
    found = Path(triton.origin).parent / "backends" / "nvidia" / "include"
    return found if (found / "cuda_runtime_api.h").exists() else None


def build(directory: Path) -> Path:
    """The library, in ``directory``."""
    library = directory / "no_gpu_runtime.so"
    if not library.exists():
        options = ["-shared", "-fPIC", "-O1", "-Wl,-soname,libcuda.so.1", f"-I{_headers()}"]
        subprocess.run(["gcc", *options, HERE / "no_gpu_runtime.c", "-o", library], check=True)
    return library


def python(library: Path, *arguments: str, cwd: Path, asked: str = "", **variables: str) -> str:
    """What ``python ARGUMENTS`` answers on stdout to ``asked``, with ``library`` preloaded.

    Raises:
        RuntimeError: it failed; says what it wrote to stderr.
    """
    environment = {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", **variables}
    answer = subprocess.run(
        [sys.executable, *arguments], input=asked, cwd=cwd, env=environment, capture_output=True, text=True
    )
    if answer.returncode:
        raise RuntimeError(answer.stderr[-4000:])
    return answer.stdout
