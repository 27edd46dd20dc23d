"""Command lines on the pretended GPU; without gcc or a CUDA build of torch these tests are left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import runtime

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Answer:
    """What a command line gave, and ``(count, kind, line)`` of what made the host wait for the device."""

    status: int
    out: str
    err: str
    waits: list[tuple[int, str, str]]

    def waited(self, *at: str) -> int:
        """How often it waited in lines of code of which one of ``at`` is a part; all without."""
        return sum(count for count, _, line in self.waits if not at or any(part in line for part in at))


Drive = Callable[[list[dict[str, Any]], Path], list[Answer]]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in for the CUDA runtime."""
    if reason := runtime.missing():
        pytest.skip(reason)
    return runtime.build(tmp_path_factory.mktemp("runtime"))


@pytest.fixture(scope="session")
def drive(library: Path) -> Drive:
    """``drive([{"line": ["sstune", "train"]}], directory)``: run them there in one process, see drive.py."""

    def drive(requests: list[dict[str, Any]], directory: Path) -> list[Answer]:
        asked = json.dumps(requests)
        said = runtime.python(library, str(HERE / "drive.py"), cwd=directory, asked=asked)
        return [Answer(**answer) for answer in json.loads(said)]

    return drive
