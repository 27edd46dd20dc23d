"""docs/results.md explains every key and column that there is, and no other; runs write no other keys."""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, NotRequired, get_args, get_origin, get_type_hints, is_typeddict

import pytest

import sstune
import sstune.row
from sstune.report import alignment, pairs, retrieval, tables
from sstune.report.audit_table import audit_table
from sstune.report.measurements import LINE, frame
from sstune.report.rows import read_rows
from sstune.row import (
    AuditCell,
    ConfigEntry,
    Details,
    Measured,
    Measurement,
    Row,
    measurement,
    metric_of,
    value_of,
)

ROOT = Path(sstune.__file__).parents[1]
PAGE = (ROOT / "docs/results.md").read_text(encoding="utf-8")
RESULTS = sorted((ROOT / "results").glob("*/rows.jsonl"))
# Keys of a configuration are explained where configurations are.
TYPES = [
    kind
    for name, kind in vars(sstune.row).items()
    if is_typeddict(kind) and not name.endswith("ConfigEntry") and name not in ("ConfigEntry", "NameEntry")
]
INHERITS = {Measurement: Details, AuditCell: Measurement, Row: Measured}
NAMES = {str: "text", int: "integer", float: "number", bool: "true or false", NoneType: "null", Any: "any"}


def section(heading: str) -> str:
    """The text below a heading, to the next one of any level."""
    (text,) = re.findall(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return text


def explained(heading: str) -> list[str]:
    """The first column of a section's table."""
    return re.findall(r"^\| `([^`]+)` \|", section(heading), re.MULTILINE)


def type_name(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is NotRequired:
        return type_name(arguments[0])
    if origin is Annotated:
        return f"{hint.__metadata__[0]} {type_name(get_args(hint.__origin__)[0])}s"
    if origin is list:
        return f"list of {type_name(arguments[0])}" + "s" * (arguments[0] in (int, float))
    if origin is dict:
        return f"text → {type_name(arguments[1])}"
    if arguments:
        return " or ".join(map(type_name, arguments))
    if is_typeddict(hint):
        return (
            "configuration" if hint.__name__.endswith("ConfigEntry") or hint is ConfigEntry else hint.__name__
        )
    return NAMES[hint]


def key_lines(kind: Any) -> list[str]:
    """The lines of a type's table: its own keys, as its source has them."""
    hints, lines = get_type_hints(kind, include_extras=True), []
    body = ast.parse(inspect.getsource(kind)).body[0].body  # type: ignore[attr-defined]
    for key, text in itertools.pairwise(body):
        if isinstance(key, ast.AnnAssign):
            name, meaning = key.target.id, " ".join(text.value.value.replace("``", "`").split())  # type: ignore
            optional = get_origin(hints[name]) is NotRequired or name in kind.__optional_keys__
            present = "" if optional else "always"
            lines.append(
                f"| `{name}` | {type_name(hints[name])} | {present} | {meaning} |".replace("|  |", "| |")
            )
    return lines


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
def test_keys_are_explained_as_their_type_does(kind: Any) -> None:
    expected = key_lines(kind)
    inherited = get_type_hints(INHERITS[kind]) if kind in INHERITS else ()
    assert len(expected) + len(inherited) == len(get_type_hints(kind)), "a key has no docstring"
    found = [line for line in section(kind.__name__).splitlines() if line.startswith("| `")]
    assert found == expected, "expected:\n" + "\n".join(expected)


def test_columns_are_those_of_the_tables() -> None:
    (results,) = [path for path in RESULTS if path.parent.name == "audit"]
    rows = read_rows([results])
    cells = frame(rows)
    audits = [re.sub(r"\d+/\d+", "EPS", column) for column in audit_table(rows, cells)]
    ranked = [re.sub(r"^([PR])@\d+$", r"\1@N", column) for column in retrieval.COLUMNS]
    columns = {
        "table.csv": tables.LONG,
        "wide.csv": [*LINE, "ATTACK EPS GRADIENT"],
        "gap.csv": pairs.GAP,
        "paired.csv": pairs.PAIRED,
        "retrieval.csv": list(dict.fromkeys(ranked)),
        "audit.csv": list(dict.fromkeys(audits)),
        "alignment.csv": alignment.COLUMNS,
    }
    for name, expected in columns.items():
        assert explained(name) == expected, name
    mixed = cells.assign(metric="mAP")
    made = {"table.csv": tables.table(mixed), "gap.csv": pairs.gap_table(mixed)}
    for name, found in made.items():
        place = columns[name].index("variant") + 1
        assert list(found) == [*columns[name][:place], "metric", *columns[name][place:]]


def test_columns_of_a_runs_own_tables(chain: Any) -> None:
    for name in ("history.csv", "alignment.csv"):
        header = (chain.finetune / name).read_text(encoding="utf-8").split("\n")[0].split(",")
        assert explained(f"{name} of a run") == header


def undeclared(value: Any, kind: Any, key: str = "row") -> Iterator[str]:
    """Keys of a row that its type does not have."""
    if get_origin(kind) is NotRequired:
        kind = get_args(kind)[0]
    inner = next((each for each in get_args(kind) if is_typeddict(each)), None)
    if isinstance(value, list) and inner:
        for each in value:
            yield from undeclared(each, inner, key)
    elif is_typeddict(inner or kind) and isinstance(value, Mapping) and not key.endswith("config"):
        hints = get_type_hints(inner or kind, include_extras=True)
        for name, each in value.items():
            if name not in hints:
                yield f"{key}.{name}"
            else:
                yield from undeclared(each, hints[name], f"{key}.{name}")


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_committed_rows_have_no_other_keys(path: Path) -> None:
    for row in read_rows([path]):
        assert list(undeclared(row, Row)) == []


def test_runs_write_no_other_keys(chain: Any) -> None:
    for run in (chain.train, chain.finetune, chain.attack):
        row = json.loads((run / "result.json").read_text(encoding="utf-8"))
        assert list(undeclared(row, Row)) == []
        assert set(undeclared(row | {"nn": 1, "git": {"comit": ""}}, Row)) == {"row.nn", "row.git.comit"}


def test_a_measurement_is_counted_or_has_a_value() -> None:
    clean = measurement("test", 10, correct=7)
    assert clean == {"split": "test", "n": 10, "correct": 7, "attack": None, "gradient": None, "eps": None}
    assert (metric_of(clean), value_of(clean)) == ("accuracy", 0.7)
    labels = {"attack": "pgd", "gradient": "rule", "eps": "8/255"}
    average = measurement("test", 10, **labels, metric="mAP", value=0.25)
    assert (metric_of(average), value_of(average)) == ("mAP", 0.25)
    for wrong in ({}, {"correct": 11}, {"correct": -1}, {"value": 1.5}, {"value": float("nan")}):
        with pytest.raises(ValueError, match=r"needs correct or value|outside"):
            measurement("test", 10, **wrong)
