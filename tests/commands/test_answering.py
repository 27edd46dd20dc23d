"""A finished run is answered from its row: by a process that imports neither torch nor what draws tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import sstune

ROOT = Path(sstune.__file__).parents[1]
PROGRAM = """
import json, sys, time
from sstune.cli import main
statuses = [main(line) for line in json.load(sys.stdin)]
heavy = {"torch", "torchvision", "timm", "pandas", "matplotlib"} & set(sys.modules)
print(json.dumps([statuses, sorted(heavy), time.process_time()]))
"""


def answered(lines: list[list[str]], directory: Path) -> tuple[list[str], Any]:
    """What one new process prints for command lines, and its (exit statuses, heavy modules, CPU seconds)."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(lines),
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert process.stderr == ""
    *printed, measured = process.stdout.splitlines()
    return printed, json.loads(measured)


def test_needs_no_torch_for_any_command_or_ancestor(chain: Any, ask: Any, tmp_path: Path) -> None:
    common = [word for word in chain.line if word.startswith(("dataset", "threads", "device", "out"))]
    recipe = [word for word in chain.line if word.startswith(("epochs", "batch_size", "optimizer"))]
    fgsm = [word for word in chain.line if word.startswith("attack") and "=" in word]
    out = [word for word in common if word.startswith("out")]
    skipped = f"audit.skip=[{','.join(f'D{number}' for number in range(2, 16))}]"
    audit = ["attack=audit", "attack.n=10", "attack.eps=[8/255]", skipped, f"init_from={chain.finetune}"]
    audit += [f"out={tmp_path}", "device=cpu", "threads=1", "audit.strict=true"]
    assert ask("attack", *audit).status == 1  # INCONCLUSIVE, as the checks are skipped
    lines = [
        ["train", *common],
        ["finetune", *common, *recipe],
        ["finetune", *recipe, *out, f"init_from={chain.train}"],
        ["attack", *common, *recipe, *fgsm],
        ["attack", *fgsm, *out, f"init_from={chain.finetune}"],
        ["attack", "-m", *fgsm, *out, f"init_from={chain.finetune}"],
        ["attack", *audit[:-1]],
    ]
    printed, (statuses, heavy, seconds) = answered(lines, tmp_path)
    assert statuses == [0] * len(lines)
    assert heavy == []
    assert seconds < 4  # of all seven, on a busy machine; importing torch alone takes 2
    done = [line.removesuffix(": done already") for line in printed if line.endswith(": done already")]
    train, finetune, attack = map(str, (chain.train, chain.finetune, chain.attack))
    assert done[:9] == [train, train, finetune, finetune, train, finetune, attack, attack, done[-1]]
    assert Path(done[-1]).parent == tmp_path / "attack"
    assert "1 cells, 1 done already" in printed
    assert any(line.startswith("INCONCLUSIVE") for line in printed)
