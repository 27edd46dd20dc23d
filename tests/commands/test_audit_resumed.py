"""An audit that was interrupted goes on, whatever its task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from stopping import StopAfter, timeless

from sstune.commands import audit, execute
from sstune.commands.lineage import derive_run
from sstune.composition import Request, compose, request
from sstune.interrupt import Stopped

TRAINED = ["dataset=digits", "backbone=mlp", "epochs=2", "threads=1", "device=cpu"]
HASHING = ["task=hashing", "task.bits=16", "split.n_query=20", "split.n_train=80", "split.n_val=10"]
AUDIT = [
    "attack=audit", "rule=frsf", "attack.eps=[0.05,0.1]", "attack.batch_size=16", "audit.label_n=30",
    "audit.square_queries=50", "audit.label_queries=50", "audit.skip=[D4,D7,D8,D13,D16]",
    "threads=1", "device=cpu",
]  # fmt: skip


@pytest.mark.parametrize("task", [[], HASHING], ids=["classification", "hashing"])
def test_killed_in_the_middle_it_makes_no_attack_twice(task: list[str], tmp_path: Path) -> None:
    network = execute(request("train", [*TRAINED, *task, f"out={tmp_path}"])).directory
    line = [*AUDIT, f"init_from={network}", f"attack.n={40 if task else 60}", "audit.black_box_n=40"]

    def measured(out: str, stop: StopAfter) -> Any:
        ours = [*line, f"out={tmp_path / out}"]
        run, source = derive_run(Request.of(compose("attack", ours), ours), None)
        run.directory.mkdir(parents=True, exist_ok=True)
        return audit.measure(run, source, torch.device("cpu"), stop)

    whole, first, second = StopAfter(10**6), StopAfter(22), StopAfter(10**6)
    expected = measured("whole", whole)
    with pytest.raises(Stopped):
        measured("parts", first)
    assert timeless(measured("parts", second)) == timeless(expected)
    batches, again = 10**6 - whole.looks, 10**6 - second.looks
    assert batches > 30
    assert again == batches - 22
