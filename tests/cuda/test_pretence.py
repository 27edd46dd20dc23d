"""The pretended GPU refuses what CUDA refuses, and counts what makes the host wait for it."""

from __future__ import annotations

import json
from pathlib import Path

import runtime

WAITS = {
    "CPU index": 1, "mask": 1, "item": 1, "truth": 1, "tolist": 1, "cpu": 1, "to cuda": 1, "tensor": 1,
    "CPU scalar": 0, "fill by mask": 0, "to cuda, pinned": 0, "full": 0, "where": 0, "a training step": 0,
}  # fmt: skip


def test_mistakes_are_caught_and_waits_are_counted(library: Path, tmp_path: Path) -> None:
    script = str(Path(__file__).parent / "mistakes.py")
    found = json.loads(runtime.python(library, script, cwd=tmp_path))
    assert len(found["caught"]) > 20
    assert [name for name, said in found["caught"].items() if not said] == []
    assert found["waits"] == WAITS


def test_a_run_on_the_cpu_leaves_cuda_alone(library: Path, tmp_path: Path) -> None:
    """Where a GPU is, a process that has not been told to use it holds none of its memory."""
    line = ["train", "device=cpu", "threads=1", "epochs=1", "backbone=mlp", "rule=brsf"]
    code = (
        "import sys, torch; from sstune.cli import main; assert torch.cuda.is_available();"
        f"assert main({line}) == 0; assert main({['attack', *line[1:], 'attack.n=20']}) == 0;"
        "sys.exit(torch.cuda.is_initialized())"
    )
    runtime.python(library, "-c", code, cwd=tmp_path)
