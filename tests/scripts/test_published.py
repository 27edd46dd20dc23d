"""Published figures stand beside the means of our rows, and a difference is judged."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "published.py"


def row(rule: str, seed: int, correct: int, angle: float) -> dict[str, Any]:
    layer = {"epoch": 2, "layer": "head", "angle": angle, "sign_agreement": 1.0, "rms_ratio": 1.0,
             "update_cosine": 1.0}  # fmt: skip
    none = {"attack": None, "gradient": None, "eps": None}
    return {
        "schema_version": 1,
        "identity": f"{rule}{seed}",
        "command": "train",
        "config": {
            "backbone": {"name": "mlp"},
            "dataset": {"name": "mnist", "label": "mnist"},
            "task": {"name": "classification"},
            "rule": {"name": rule, "scale": "xavier"},
            "seed": seed,
        },
        "lineage": [],
        "n_classes": 10,
        "measurements": [{"split": "test", "n": 10_000, "correct": correct, **none}],
        "alignment": [layer],
    }


def test_lines_hold_mean_std_difference_and_end_angles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        row("fa", 0, 9823, 80.0),
        row("fa", 1, 9833, 82.0),
        row("pfa_o", 0, 9742, 1.0),
        row("kp", 0, 9840, 2.0),
    ]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(each) + "\n" for each in rows))
    results = tmp_path / "results"
    monkeypatch.setattr(sys, "argv", ["published.py", "mnist_mlp", str(source), "--results", str(results)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    frame = pd.read_csv(results / "mnist_mlp.csv").set_index("rule")
    assert list(frame.index) == ["fa", "kp", "pfa_o"]
    assert frame["accuracy"].to_dict() == {"fa": 98.28, "kp": 98.4, "pfa_o": 97.42}
    assert frame["published"].dropna().to_dict() == {"fa": 98.23, "pfa_o": 98.42}
    assert frame["difference"].dropna().to_dict() == {"fa": 0.05, "pfa_o": -1.0}
    assert frame["within_tolerance"].dropna().to_dict() == {"fa": True, "pfa_o": False}
    assert frame["angle_head"].to_dict() == {"fa": 81.0, "kp": 2.0, "pfa_o": 1.0}
    assert frame.loc["fa", "std"] == pytest.approx(0.071, abs=1e-3)
    assert (results / "mnist-mlp" / "rows.jsonl").exists()
    assert "wrote" in capsys.readouterr().out
