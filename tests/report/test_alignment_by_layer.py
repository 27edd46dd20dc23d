"""Alignment by layer: means over seeds in the network's order, and a figure of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from sstune.report.alignment import COLUMNS, alignment_by_layer, alignment_table


def entries(angles: list[float | None]) -> list[dict[str, Any]]:
    return [
        {"epoch": 3, "layer": layer, "angle": angle, "sign_agreement": 0.9, "rms_ratio": 1.0,
         "update_cosine": 0.5 + 0.1 * place}
        for place, (layer, angle) in enumerate(zip(("stem", "block", "head"), angles, strict=True))
    ]  # fmt: skip


def rows(make: Any) -> list[dict[str, Any]]:
    measured = [
        make.finetune("usf", 0) | {"alignment": entries([30, 40, 50])},
        make.finetune("usf", 1) | {"alignment": entries([32, 40, 53])},
        make.finetune("dfa", 0) | {"alignment": entries([None] * 3)},
    ]
    return [*measured, make.finetune("bp", 0) | {"alignment": []}, make.attack(measured[0])]


def test_one_line_per_net_and_layer_with_means_over_seeds(make: Any) -> None:
    table = alignment_table(rows(make))
    assert list(table.columns) == COLUMNS
    assert list(table["rule"]) == ["usf"] * 3 + ["dfa"] * 3
    assert list(table["layer"]) == ["stem", "block", "head"] * 2
    assert list(table["seeds"]) == [2] * 3 + [1] * 3
    assert list(table["angle"][:3]) == [31, 40, 51.5]
    assert list(table["angle_std"][:3]) == pytest.approx([math.sqrt(2), 0, 3 / math.sqrt(2)])
    assert table["angle"][3:].isna().all()
    assert list(table["update_cosine"]) == pytest.approx([0.5, 0.6, 0.7] * 2)


def test_the_order_of_rows_does_not_show(make: Any) -> None:
    one, other = (alignment_table(each) for each in (rows(make), rows(make)[::-1]))
    assert one.equals(other)


def test_recipes_are_told_apart(make: Any) -> None:
    recipes = [
        make.finetune("pfa", 0, optimizer__weight_decay=decay) | {"alignment": entries([angle] * 3)}
        for decay, angle in ((0.1, 10.0), (0.2, 20.0))
    ]
    table = alignment_table(recipes)
    found = dict(zip(table["variant"], table["angle"], strict=True))
    assert found == {"optimizer.weight_decay=0.1": 10.0, "optimizer.weight_decay=0.2": 20.0}


def test_rows_without_any_give_an_empty_table_and_no_figure(make: Any, tmp_path: Path) -> None:
    without = [make.finetune("bp", 0), make.finetune("usf", 0)]
    assert alignment_table(without).empty
    assert alignment_by_layer(alignment_table(without), tmp_path / "alignment") == []


def test_figures_are_byte_identical_whatever_the_order(make: Any, tmp_path: Path) -> None:
    written = []
    for name, each in (("one", rows(make)), ("two", rows(make)[::-1])):
        (tmp_path / name).mkdir()
        paths = alignment_by_layer(alignment_table(each), tmp_path / name / "alignment")
        assert [path.name for path in paths] == ["alignment.png", "alignment.svg"]
        written.append([path.read_bytes() for path in paths])
    assert written[0] == written[1]
    assert b"stem" in written[0][1] or len(written[0][1]) > 1000
