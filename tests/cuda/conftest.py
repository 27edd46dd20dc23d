"""Command lines on the pretended GPU; without gcc or a CUDA build of torch these tests are left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import runtime
from lines import Answer, Drive

HERE = Path(__file__).parent


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
        home = {"HOME": str(directory)}  # decoded images are cached there
        said = runtime.python(library, str(HERE / "drive.py"), cwd=directory, asked=asked, **home)
        return [Answer(**answer) for answer in json.loads(said)]

    return drive
