"""Runs command lines one after the other on the pretended GPU; JSON on stdin and stdout.

Each request is ``{"line": [...]}`` with, besides, ``"stop": n`` for a signal when the run has looked for one
n times, ``"images": n`` for a memory that holds no more of them. The line begins with ``sstune``, or with the
path of a script. Each answer is ``{"status", "out", "err", "waits": [[count, kind, line], ...], "seconds"}``.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from pretence import pretend  # noqa: E402
from pretended import LEDGER  # noqa: E402
from refusals import LIMITS  # noqa: E402

warnings.simplefilter("ignore")
os.environ["HYDRA_FULL_ERROR"] = "0"


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Run one command line."""
    LEDGER.waits.clear()
    began = time.process_time()
    LIMITS["images"] = request.get("images", 0)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), stopped(request.get("stop")):
        try:
            status = run(request["line"])
        except SystemExit as stop:
            status = int(stop.code or 0)
        except Exception:
            traceback.print_exc()
            status = -1
    waits = [[count, kind, line] for (kind, line), count in LEDGER.waits.most_common()]
    said = {"status": status, "out": out.getvalue(), "err": err.getvalue(), "waits": waits}
    return said | {"seconds": time.process_time() - began}


def run(line: list[str]) -> int:
    program, *arguments = line
    if program == "sstune":
        from sstune.cli import main

        return main(arguments)
    sys.argv = line
    sys.path.insert(0, str(Path(program).resolve().parent))
    runpy.run_path(program, run_name="__main__")
    return 0


@contextlib.contextmanager
def stopped(looks: int | None) -> Iterator[None]:
    """Inside, a signal comes to a run when it has looked so often whether one came."""
    if looks is None:
        yield
        return
    from stopping import StopAfter

    from sstune.commands import run_once

    before = run_once.stop_flag
    run_once.stop_flag = lambda: contextlib.nullcontext(StopAfter(looks))
    try:
        yield
    finally:
        run_once.stop_flag = before


if __name__ == "__main__":
    requests = json.load(sys.stdin)
    pretend()
    print(json.dumps([answer(request) for request in requests]), flush=True)
    os._exit(0)  # as in mistakes.py
