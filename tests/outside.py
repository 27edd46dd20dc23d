"""Command lines for a package outside sstune, which registers its own options."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sstune

ROOT = Path(sstune.__file__).parents[1]
PACKAGE = "their_package"
_PROGRAM = f"""
import contextlib, io, json, sys
import {PACKAGE}
from sstune.cli import main

answers = {{}}
for name, line in json.loads(sys.argv[1]).items():
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(line.split())
    answers[name] = [status, out.getvalue(), err.getvalue().splitlines()]
print(json.dumps(answers))
"""


def answers_with(source: str, lines: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """Write the package to ``folder``, import it in a new process, and run each command line there, in order.

    Returns:
        Exit status, standard output, and the lines of standard error of each command line, by its name.
    """
    (folder / f"{PACKAGE}.py").write_text(source, encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "-c", _PROGRAM, json.dumps(lines)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(ended.stdout)
    return found
