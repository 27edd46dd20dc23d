"""Rows are other people's: none ends in a traceback, runs as a formula or moves a terminal's cursor."""

from __future__ import annotations

import copy
import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sstune.report.measurements import frame
from sstune.report.tables import table, to_csv, to_latex, to_text, wide

Ask = Callable[..., Any]
NAMES = [
    *("=1+1", "+1", "-1", "@SUM(A1)", "'quoted", "\tx", "\rx", "a\nb", "\x1b[31mred", "$\\frac$"),
    *("[x]", "*", "a&b\\%"),
]
WRONG: list[Any] = [None, [], {}, "", 0, -1, 1.5, True, "x", "=1", "\x1b[31m\n", 10**30, 1e308, [[]], ["x"]]


@pytest.mark.parametrize("name", NAMES)
def test_no_cell_of_a_csv_is_a_formula_and_each_reads_back(make: Any, name: str) -> None:
    rows = [make.finetune("usf", 0, dataset__label=name)]
    for made in (table(frame(rows)), wide(frame(rows))):
        cells = [cell for line in csv.reader(io.StringIO(to_csv(made))) for cell in line]
        assert not any(cell.startswith(("=", "+", "@", "\t", "\r")) for cell in cells)
        assert not any(cell.startswith("-") and not cell[1:2].isdigit() for cell in cells)
        escaped = name.encode("unicode_escape").decode() if not name.isprintable() else name
        assert escaped in [cell.removeprefix("'") if cell != escaped else cell for cell in cells]


def test_negative_numbers_stay_numbers(make: Any) -> None:
    found = table(frame([make.finetune()])).assign(mean=-0.25)
    assert ",-0.250000," in to_csv(found)


@pytest.mark.parametrize("name", NAMES)
def test_latex_and_text_have_no_control_character(make: Any, name: str) -> None:
    rows = [make.finetune("usf", seed, dataset__label=label) for seed, label in ((0, name), (0, "other"))]
    for text in (to_text(frame(rows)), to_latex(frame(rows))):
        assert all(line.isprintable() for line in text.split("\n"))
    body = to_latex(frame(rows)).split("\\midrule\n")[1]
    assert not any(line.startswith(("[", "*")) for line in body.splitlines())
    assert body.count("\\\\\n") == 2


def test_a_name_between_dollars_is_a_name(ask: Ask, tmp_path: Path, make: Any) -> None:
    parent = make.finetune("usf", 0, dataset__label="$\\frac$", backbone__name="$\\x$")
    rows = [parent, make.attack(parent, counts={"4/255": (700, 300), "8/255": (500, 100)})]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answer = ask("report", "rows.jsonl", "--out", "made")
    assert (answer.status, answer.err) == (0, "")
    assert list((tmp_path / "made").glob("*.png"))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a row, of long lists the first two entries."""
    first = enumerate(value[:2]) if isinstance(value, list) else ()
    entries = value.items() if isinstance(value, dict) else first
    for key, inner in entries:
        yield (*path, key)
        yield from places(inner, (*path, key))


def test_any_value_of_another_kind_is_a_table_or_one_line(ask: Ask, tmp_path: Path, make: Any) -> None:
    good = make.attack(make.finetune("usf", 0), counts={"8/255": (500, 100)})
    good["datasets"] = {"test": {"n": 1000, "digest": "d", "attacked": "a"}}
    for number, path in enumerate(places(good)):
        row = copy.deepcopy(good)
        *above, key = path
        owner = row
        for part in above:
            owner = owner[part]
        owner[key] = WRONG[number % len(WRONG)]
        (tmp_path / "rows.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(row)}\n")
        answer = ask("report", "rows.jsonl")
        shown = f"{path} = {owner[key]!r}: {answer.err}"
        assert answer.status in (0, 2), shown
        assert len(answer.errors) == (1 if answer.status else 0), shown
        assert all(error.startswith("sstune: ") and len(error) <= 200 for error in answer.errors), shown
        assert all(line.isprintable() for line in answer.out.split("\n")), shown
