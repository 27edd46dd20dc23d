"""What the bench of sweeps counts, on real logs of real runs."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import processes
import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_sweep.py"
script: dict[str, Any] = runpy.run_path(str(SCRIPT))
Log = Callable[..., SimpleNamespace]


@pytest.fixture
def log(ask: Callable[..., Any], tmp_path: Path) -> Log:
    """``log("0,1")``: a sweep's log of those seeds, as :class:`Sweep` reads it."""

    def log(seeds: str, *overrides: str) -> SimpleNamespace:
        answer = ask("train", "-m", *script["RECIPE"], "out=out", f"seed={seeds}", *overrides)
        assert answer.status == 0
        path = tmp_path / f"{len(list(tmp_path.glob('*.log')))}.log"
        path.write_text(answer.out)
        sweep = SimpleNamespace(log=path)
        sweep.chosen = lambda: script["Sweep"].chosen(sweep)
        return sweep

    return log


@pytest.mark.parametrize(
    ("lines", "cells", "twice", "missing"),
    [
        ([["0,1,2"]], 3, 0, 0),
        ([["0,1"], ["0,1,2"]], 3, 0, 0),  # the second one skips two
        ([["0,1"]], 3, 0, 1),
        ([["0,1,2"], ["1,2", "force=true"]], 3, 2, 0),
    ],
)
def test_cells_run_twice_and_missing_cells_are_counted(
    log: Log, tmp_path: Path, lines: list[list[str]], cells: int, twice: int, missing: int
) -> None:
    sweeps = [log(*line) for line in lines]
    found = script["tally"](sweeps, tmp_path / "out", cells)
    assert found == {"twice": twice, "missing": missing}


@pytest.mark.parametrize(
    ("changed", "wrong"),
    [
        ({}, False),
        ({"twice": 1}, True),
        ({"missing": 1}, True),
        ({"ms_each": 10.0}, True),
        ({"ms_each": 10.0, "cells": 99}, False),
    ],
)
def test_the_verdict(changed: dict[str, float], wrong: bool) -> None:
    again = {"what": "again", "cells": 100, "ms_each": 9.9}
    two = {"what": "two", "cells": 10, "twice": 0, "missing": 0}
    for key, value in changed.items():
        (again if key in again else two)[key] = value
    assert script["is_wrong"](pd.DataFrame([{"what": "start", "cells": 1}, again, two])) == wrong


class Forked:
    """``subprocess.Popen`` of ``python -m sstune ...``, forked from what is imported already."""

    def __init__(self, command: list[str], stdout: Any, **_: Any) -> None:
        assert command[1:3] == ["-m", "sstune"]
        self.process = processes.start(command[3:], Path(stdout.name).parent, Path(stdout.name))

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int:
        return processes.wait(self.process)

    def send_signal(self, number: int) -> None:
        if self.process.pid is not None and self.process.is_alive():
            os.kill(self.process.pid, number)


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "made" / "sweep.csv"
    monkeypatch.setattr(sys, "argv", ["bench_sweep.py", "--cells", "4", "--out", str(out)])
    popen = SimpleNamespace(Popen=Forked, STDOUT=None)
    monkeypatch.setitem(script["main"].__globals__, "subprocess", popen)
    assert script["main"]() == 0
    frame = pd.read_csv(out)
    assert list(frame["what"]) == ["start", "start", "run", "again", "resume", "two"]
    assert list(frame["cells"]) == [1, 4, 4, 4, 2, 2]
    assert (frame["seconds"] > 0).all()
    assert frame[["twice", "missing"]].dropna().to_numpy().tolist() == [[0, 0], [0, 0]]
