"""docs/architecture.md: its layers name every module, no import goes upward, and its classes exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import sstune

PACKAGE = Path(sstune.__file__).parent
PAGE = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
ENTRIES = {"__init__", "__main__"}


def unit(path: Path) -> str:
    """The package or top-level module that a file belongs to."""
    first, *rest = path.relative_to(PACKAGE).parts
    return first if rest else first.removesuffix(".py")


UNITS = {unit(path) for path in PACKAGE.rglob("*.py")} - ENTRIES


def imports(path: Path) -> Iterator[str]:
    """Units that a file imports when it is imported itself: neither in functions nor for types only."""
    statements: list[ast.AST] = [*ast.parse(path.read_text(encoding="utf-8")).body]
    while statements:
        statement = statements.pop()
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            continue
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            continue
        if isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith("sstune"):
            _, *inside = str(statement.module).split(".")
            yield from inside[:1] or [alias.name for alias in statement.names]
        else:
            statements += ast.iter_child_nodes(statement)


def arrows() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {name: set() for name in UNITS}
    for path in PACKAGE.rglob("*.py"):
        if unit(path) in UNITS:
            found[unit(path)] |= set(imports(path)) & UNITS - {unit(path)}
    return found


def layers() -> dict[str, int]:
    """Each unit's layer on the page."""
    lines = re.findall(r"^\| (\d+) \| (.*) \|$", PAGE, re.MULTILINE)
    named = {name: int(layer) for layer, text in lines for name in re.findall(r"`(\w+)`", text)}
    return {name: layer for name, layer in named.items() if name in UNITS}


def test_every_module_stands_in_a_layer() -> None:
    assert UNITS - layers().keys() == set()


def test_no_import_goes_upward() -> None:
    """So there is no circle either."""
    layer, found = layers(), arrows()
    assert sum(map(len, found.values())) > 100
    upward = [(one, other) for one, others in found.items() for other in others if layer[one] <= layer[other]]
    assert upward == []


def test_the_glossary_is_short_and_its_classes_exist() -> None:
    lines = re.findall(r"^\| [a-z ]+ \| .* \| `(\w+)` \|$", PAGE, re.MULTILINE)
    assert 20 <= len(lines) <= 25
    classes = {
        node.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    }
    assert [name for name in lines if name not in classes] == []
