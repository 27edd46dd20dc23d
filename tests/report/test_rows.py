"""Rows are found wherever they lie, refused when they are not rows, and kept in one order."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sstune
from sstune.packing import pack
from sstune.report.rows import read_rows, unique, write_rows
from sstune.schema import RequestError

ROOT = Path(sstune.__file__).parents[1]


@pytest.fixture
def rows(make: Any) -> list[Any]:
    parents = [make.finetune(rule, seed) for rule in ("usf", "bp") for seed in (1, 0)]
    return parents + [make.attack(parent) for parent in parents]


@pytest.fixture
def runs(rows: list[Any], tmp_path: Path) -> Path:
    """``runs/<command>/<identity>/result.json``, as runs lie."""
    for row in rows:
        directory = tmp_path / "runs" / row["command"] / row["identity"][:12]
        directory.mkdir(parents=True)
        (directory / "result.json").write_text(json.dumps(row, indent=1))
        (directory / "previous.result.json").write_text("an earlier result, put aside")
    return tmp_path / "runs"


def test_every_kind_of_path_gives_the_same_rows(runs: Path, rows: list[Any]) -> None:
    whole = read_rows([runs])
    assert {row["identity"] for row in whole} == {row["identity"] for row in rows}
    files = sorted(runs.rglob("result.json"))
    assert read_rows(files) == whole
    assert read_rows([file.parent for file in reversed(files)]) == whole
    assert read_rows([str(runs / "attack"), str(runs / "finetune")]) == whole
    write_rows(whole, runs.parent / "rows.jsonl")
    assert read_rows([runs.parent / "rows.jsonl"]) == whole


def test_order_is_for_reading(rows: list[Any]) -> None:
    seen = [(row["config"]["rule"]["name"], row["command"], row["config"]["seed"]) for row in unique(rows)]
    assert seen == [
        *[("bp", "attack", 0), ("bp", "attack", 1), ("bp", "finetune", 0), ("bp", "finetune", 1)],
        *[("usf", "attack", 0), ("usf", "attack", 1), ("usf", "finetune", 0), ("usf", "finetune", 1)],
    ]


def test_a_run_found_twice_counts_once(runs: Path) -> None:
    assert read_rows([runs, runs / "attack", runs]) == read_rows([runs])


def test_one_run_with_two_results_is_refused(rows: list[Any]) -> None:
    repeated = {**rows[0], "seconds": 1.0, "device": "cuda"}
    assert len(unique([*rows, repeated])) == len(rows)
    other = json.loads(json.dumps(rows[0]))
    other["measurements"][1]["correct"] -= 1
    with pytest.raises(RequestError, match="twice with different counts"):
        unique([*rows, other])


def test_which_of_two_equal_runs_is_kept_does_not_depend_on_order(rows: list[Any]) -> None:
    repeated = {**rows[0], "seconds": 1.0}
    assert unique([rows[0], repeated]) == unique([repeated, rows[0]])


def test_rows_file_is_the_same_however_rows_come(rows: list[Any], tmp_path: Path) -> None:
    contents = set()
    for attempt in range(5):
        random.Random(attempt).shuffle(rows)
        write_rows([*rows, rows[0]], tmp_path / "rows.jsonl")
        contents.add((tmp_path / "rows.jsonl").read_bytes())
    (content,) = contents
    lines = content.decode().split("\n")
    assert len(lines) == len(rows) + 1
    assert lines[-1] == ""
    assert [list(json.loads(line)) for line in lines[:-1]] == [sorted(rows[0])] * len(rows)
    assert not list(tmp_path.glob(".*")), "temporary files left behind"


def test_line_separators_within_a_string_do_not_split_a_row(make: Any, tmp_path: Path) -> None:
    row = make.finetune(dataset__label="a\u2028b\x85c\nd")
    write_rows([row], tmp_path / "rows.jsonl")
    assert read_rows([tmp_path / "rows.jsonl"]) == [row]


def changed(row: Any, key: str, value: Any) -> Any:
    row = json.loads(json.dumps(row))
    node, *path = row, *key.split(".")
    for part in path[:-1]:
        node = node[int(part) if part.isdigit() else part]
    node[path[-1]] = value
    return row


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("schema_version", 2, "schema_version is 2, expected 1"),
        ("identity", None, "identity: expected str, found None"),
        ("config", [], "config.backbone.name: expected str"),
        ("config.rule", {}, "config.rule.name: expected str"),
        ("n_classes", "ten", "n_classes: expected int"),
        ("lineage", [{"identity": "f" * 64}], "lineage: expected"),
        ("measurements", {}, "measurements: expected list"),
        (
            "measurements",
            [{"n": 10}],
            "expected each to hold split, attack, gradient, eps, n, and correct or value",
        ),
        ("measurements", [None], "expected each to hold split"),
        ("measurements.1.correct", 1001, "1001 correct of 1000"),
        ("measurements.1.correct", 87.4, "87.4 correct of 1000"),
        ("measurements.0.n", 0, "900 correct of 0"),
        ("measurements.1.eps", None, "an attack needs an eps"),
        ("measurements.0.eps", "8/255", "a clean measurement has none"),
        ("measurements.1.eps", "8/0", "is not a fraction"),
        ("measurements.1.eps", "1.5", "outside [0, 1]"),
        ("config.attack.norm", "L3", "'L3' is not a valid Norm"),
        ("measurements.1.outcomes", pack([True] * 499 + [False] * 501), "pgd do not have 500 correct"),
        ("measurements.1.outcomes", pack([True] * 500), "not the outcomes of 1000 samples"),
        ("measurements.1.outcomes", "no base64!", "measurements: "),
    ],
)
def test_what_is_no_row_is_refused_by_name(
    make: Any, tmp_path: Path, key: str, value: Any, message: str
) -> None:
    good = make.attack(make.finetune())
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(good)}\n\n{json.dumps(changed(good, key, value))}\n")
    with pytest.raises(RequestError) as caught:
        read_rows([path])
    assert str(caught.value).startswith(f"{path}:3: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[1, 2]", b'"text"', b'{"accuracy": 0.9}'])
def test_a_foreign_result_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(
        RequestError, match=r"result\.json: (expected one JSON row|not a result row|cannot be)"
    ):
        read_rows([tmp_path])


def test_a_path_without_a_row_is_not_passed_over(make: Any, tmp_path: Path) -> None:
    write_rows([make.finetune()], tmp_path / "rows.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(RequestError, match=r"empty\.jsonl: holds no row"):
        read_rows([tmp_path / "rows.jsonl", tmp_path / "empty.jsonl"])
    (tmp_path / "folder").mkdir()
    with pytest.raises(RequestError, match=r"folder: no result\.json found"):
        read_rows([tmp_path / "rows.jsonl", tmp_path / "folder"])


def test_outcomes_and_an_eps_in_l2_are_read(make: Any, tmp_path: Path) -> None:
    row = make.attack(make.finetune(), counts={"1.5": (500, 100)}, norm="L2")
    row["measurements"][1]["outcomes"] = pack([True] * 500 + [False] * 500)
    write_rows([row], tmp_path / "rows.jsonl")
    assert read_rows([tmp_path / "rows.jsonl"]) == [row]


def test_nothing_found_and_nothing_there_are_said(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no result\.json found"):
        read_rows([tmp_path])
    with pytest.raises(RequestError, match="does not exist"):
        read_rows([tmp_path / "runz"])


def test_report_imports_no_torch() -> None:
    names = [f"sstune.report.{path.stem}" for path in (ROOT / "sstune/report").glob("[a-z]*.py")]
    program = (
        f"import sys, sstune.commands.report, {', '.join(names)};"
        "print([name for name in ('torch', 'hydra', 'matplotlib.pyplot') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert result.stdout.strip() == "[]"
