"""Functions stay short enough to be read like a paper's method section."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import sstune

ROOT = Path(sstune.__file__).parents[1]
LINES, PARAMETERS = 60, 6


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in [*(ROOT / "sstune").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.relative_to(ROOT)}: {node.name}", node


def test_no_function_is_long() -> None:
    lengths = {name: (node.end_lineno or 0) - node.lineno + 1 for name, node in functions()}
    assert len(lengths) > 1000
    assert {name: length for name, length in lengths.items() if length > LINES} == {}


def test_no_function_has_many_parameters() -> None:
    found = {}
    for name, node in functions():
        each = node.args
        names = [one.arg for one in (*each.posonlyargs, *each.args, *each.kwonlyargs)]
        found[name] = [one for one in names if one not in ("self", "cls")]
    assert {name: names for name, names in found.items() if len(names) > PARAMETERS} == {}
