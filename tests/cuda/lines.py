"""Command lines that tests run on the pretended GPU, on few of the embedded digits, and what they give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATA = ["dataset.test_fraction=0.1", "dataset.val_fraction=0.05", "dataset.train_n=48", "threads=1"]
RECIPE = ["epochs=1", "batch_size=16", "dataset.crop_padding=1"]
MLP = [*DATA, *RECIPE, "backbone=mlp", "backbone.hidden=[32]"]
RESNET = [*DATA, *RECIPE, "backbone=resnet20"]


def sstune(*words: str, **besides: Any) -> dict[str, Any]:
    """A request to drive.py."""
    return {"line": ["sstune", *words], **besides}


@dataclass(frozen=True)
class Answer:
    """What a command line gave, and ``(count, kind, line)`` of what made the host wait for the device."""

    status: int
    out: str
    err: str
    waits: list[tuple[int, str, str]]
    seconds: float = 0.0  # of CPU time

    def waited(self, *at: str) -> int:
        """How often it waited in lines of code of which one of ``at`` is a part; all without."""
        return sum(count for count, _, line in self.waits if not at or any(part in line for part in at))


Drive = Callable[[list[dict[str, Any]], Path], list[Answer]]
