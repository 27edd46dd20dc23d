"""Overhead of a sweep, and a check that concurrent sweeps run no cell twice.

    python scripts/bench_sweep.py --cells 1000 --out results/bench/sweep.csv

Every cell is a real run: a linear network, one epoch on the embedded digits, in a folder of its own that is
removed. Real processes of the command line are started, timed and killed. Measured are

    start    seconds from the command to its first run, for sweeps of 1 to ``--cells`` cells
    run      seconds of the whole sweep, and for each cell
    again    the same command again: seconds, and milliseconds for each cell that is done
    resume   a sweep is killed in the middle and run again: cells that were run twice, and missing ones
    two      two sweepers share a folder: cells that were run twice, and missing ones

Exit status 1: a cell was run twice in ``two`` or ``resume``, or is missing, or took 10 ms to skip (judged on
100 cells and more, as it is the difference of two whole processes).
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pandas as pd

from sstune.storage import write_text

LARGEST_MS = 10.0
RECIPE = ["backbone=mlp", "backbone.hidden=[]", "epochs=1", "threads=1", "device=cpu", "alignment=false"]


class Sweep:
    """One process of the command line on ``cells`` cells below ``out``; its output goes to ``log``."""

    def __init__(self, cells: int, out: Path, log: Path) -> None:
        line = ["train", "-m", *RECIPE, f"seed=range({cells})", f"out={out}"]
        self.log = log
        self.began = time.perf_counter()
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sstune", *line],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def seconds_to(self, pattern: str) -> float:
        """Seconds from the start until the output has ``pattern``, or until the end."""
        while self.process.poll() is None and not re.search(pattern, self.log.read_text()):
            time.sleep(0.005)
        return time.perf_counter() - self.began

    def seconds(self) -> float:
        """Seconds to the end."""
        self.process.wait()
        return time.perf_counter() - self.began

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def chosen(self) -> list[str]:
        """Directory names of the cells that this process finished."""
        text = self.log.read_text()
        return re.findall(r"/train/(\S+)\n(?:  .*\n)*?  epoch \d+ chosen", text)


def done(out: Path) -> int:
    return len(list(out.glob("train/*/result.json")))


def tally(sweeps: list[Sweep], out: Path, cells: int) -> dict[str, float]:
    """Numbers of cells that were run more than once, and never."""
    finished = Counter(name for sweep in sweeps for name in sweep.chosen())
    return {"twice": sum(n > 1 for n in finished.values()), "missing": cells - done(out)}


def measure(cells: int, folder: Path) -> pd.DataFrame:
    """One line per figure; see the module's docstring."""
    lines: list[dict[str, object]] = []

    def note(what: str, n: int, **figures: float) -> None:
        lines.append({"what": what, "cells": n, **figures})

    for n in sorted({n for n in (1, 10, 100) if n < cells} | {cells}):
        sweep = Sweep(n, folder / f"start{n}", folder / "log")
        note("start", n, seconds=sweep.seconds_to(r"/train/"))
        sweep.kill()

    out = folder / "whole"
    one = Sweep(1, out, folder / "log").seconds()
    whole = Sweep(cells, out, folder / "log").seconds()
    note("run", cells, seconds=whole, ms_each=(whole - one) / max(1, cells - 1) * 1e3)
    first = Sweep(1, out, folder / "log").seconds()
    again = Sweep(cells, out, folder / "log").seconds()
    note("again", cells, seconds=again, ms_each=(again - first) / max(1, cells - 1) * 1e3)

    some = max(2, cells // 10)
    out = folder / "killed"
    killed = Sweep(some, out, folder / "killed.log")
    while done(out) < some // 2 and killed.process.poll() is None:
        time.sleep(0.005)
    killed.kill()
    resumed = Sweep(some, out, folder / "resumed.log")
    seconds = resumed.seconds()
    note("resume", some, seconds=seconds, **tally([killed, resumed], out, some))

    out = folder / "two"
    pair = [Sweep(some, out, folder / f"two{number}.log") for number in range(2)]
    seconds = max(sweep.seconds() for sweep in pair)
    note("two", some, seconds=seconds, **tally(pair, out, some), shares=min(len(s.chosen()) for s in pair))
    return pd.DataFrame(lines)


def is_wrong(frame: pd.DataFrame) -> bool:
    """Whether a cell was run twice or never, or cells take too long to skip."""
    again = frame[frame["what"] == "again"]
    slow = (again["ms_each"] >= LARGEST_MS) & (again["cells"] >= 100)
    return bool(slow.any() or frame[["twice", "missing"]].fillna(0).to_numpy().any())


def main() -> int:
    """Parse the command line, measure, print, write, judge."""
    parser = argparse.ArgumentParser(description="Overhead of a sweep.")
    parser.add_argument("--cells", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="CSV file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        frame = measure(arguments.cells, Path(folder)).round(2)
    print(frame.to_string(index=False, na_rep=""))
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(arguments.out, frame.to_csv(index=False, lineterminator="\n"))
    return int(is_wrong(frame))


if __name__ == "__main__":
    sys.exit(main())
