"""Our half of the comparison with BioTorch, which itself is not installed here."""

from __future__ import annotations

import runpy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "scripts" / "biotorch_cases.py"
script: dict[str, Any] = runpy.run_path(str(SCRIPT))


@pytest.mark.parametrize("name", script["CASES"])
def test_our_side_passes_every_case(name: str) -> None:
    assert script["outcome"](partial(script["run_case"], script["CASES"][name]), "ours") == "passes"


@pytest.mark.parametrize("name", ["run_angle", "run_step"])
def test_our_side_passes_the_other_runs(name: str) -> None:
    assert script["outcome"](script[name], "ours") == "passes"


def test_a_wrong_result_is_told_from_a_right_one() -> None:
    right = torch.tensor([3.0, 4.0])
    script["judge"]("output", right * (1 + 1e-6), right, 1e-5)
    for wrong in [right * 1.1, right * torch.nan, right[:1]]:
        with pytest.raises(script["Wrong"]):
            script["judge"]("output", wrong, right, 1e-5)


def test_what_a_side_raises_is_one_line_of_the_table() -> None:
    def fails(side: str) -> None:
        raise RuntimeError(f"{side} failed\nand went on about it")

    assert script["outcome"](fails, "ours") == "RuntimeError: ours failed"
