"""The benchmark runs and says what it measures; its figures are nobody's test."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pandas as pd
import pytest

BENCH = Path(__file__).parents[2] / "scripts" / "bench.py"


def test_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made" / "step.csv"
    small = [
        "--backbone",
        "resnet20",
        "--batch-size",
        "4",
        "--image-size",
        "8",
        "--rounds",
        "2",
        "--warmup",
        "1",
    ]
    rules = ["--rules", "usf scale=xavier", "frsf", "brsf"]
    monkeypatch.setattr(
        sys, "argv", ["bench.py", "step", *small, *rules, "--device", "cpu", "--out", str(out)]
    )
    runpy.run_path(str(BENCH), run_name="__main__")
    frame = pd.read_csv(out).set_index("rule")
    assert list(frame.index) == ["bp", "usf scale=xavier", "frsf", "brsf"]
    assert frame.loc["bp", "ratio"] == 1
    assert frame.loc["bp", "peak_over_bp_mib"] == 0
    assert (frame["seconds"] > 0).all()
    weights = frame.loc["frsf", "weights_mib"]
    assert frame.loc["frsf", "peak_over_bp_mib"] == pytest.approx(weights, abs=0.2)
    assert "median" not in capsys.readouterr().err
