"""docs/architecture.md: its layers name every module, imports go downward, and what it names exists."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path

import sstune

PACKAGE = Path(sstune.__file__).parent
ROOT = PACKAGE.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}


def unit(path: Path) -> str:
    """The package or top-level module that a file belongs to."""
    first, *rest = path.relative_to(PACKAGE).parts
    return first if rest else first.removesuffix(".py")


UNITS = {unit(path) for path in TREES} - {"__init__"}


def imports(tree: ast.Module) -> Iterator[str]:
    """What importing a file imports of sstune, by full name: nothing inside functions or for types only."""
    statements: list[ast.AST] = [*tree.body]
    while statements:
        statement = statements.pop()
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            statements += statement.orelse
        elif isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, "relative imports are not used"
            yield from (f"{statement.module}.{alias.name}" for alias in statement.names)
        elif not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            statements += ast.iter_child_nodes(statement)


def graph() -> dict[str, set[str]]:
    """The units that each unit imports."""
    found: dict[str, set[str]] = {name: set() for name in UNITS}
    for path, tree in TREES.items():
        names = [name.split(".") for name in imports(tree)]
        imported = {parts[1] for parts in names if parts[0] == "sstune" and len(parts) > 1}
        if unit(path) in UNITS:
            found[unit(path)] |= imported & UNITS - {unit(path)}
    return found


def layers() -> list[tuple[str, int]]:
    """The units that the page names, each with its layer."""
    lines = re.findall(r"^\| (\d+) \| (.*) \|$", PAGE, re.MULTILINE)
    return [(name, int(layer)) for layer, text in lines for name in re.findall(r"`(\w+)`", text)]


def defined() -> Iterator[str]:
    """Modules, classes, functions and attributes: plain, and as ``package.module`` or ``owner.name``."""
    for path, tree in TREES.items():
        parts = ("sstune", *path.relative_to(PACKAGE).with_suffix("").parts)
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        yield from (*parts, *map(".".join, pairwise(parts)))
        owners: list[ast.Module | ast.ClassDef] = [tree]
        owners += [node for node in tree.body if isinstance(node, ast.ClassDef)]
        for owner in owners:
            prefix = owner.name if isinstance(owner, ast.ClassDef) else parts[-1]
            for node in owner.body:
                if isinstance(node, ast.ClassDef | ast.FunctionDef):
                    yield from (node.name, f"{prefix}.{node.name}")
                elif isinstance(node, ast.AnnAssign):
                    yield from (ast.unparse(node.target), f"{prefix}.{ast.unparse(node.target)}")


def test_every_module_stands_in_one_layer() -> None:
    assert Counter(name for name, _ in layers()) == Counter(UNITS)


def test_no_import_goes_upward() -> None:
    layer, found = dict(layers()), graph()
    assert sum(map(len, found.values())) > 100
    upward = [(one, other) for one, others in found.items() for other in others if layer[one] <= layer[other]]
    assert upward == []


def test_packages_do_not_import_each_other_in_a_circle() -> None:
    order = list(TopologicalSorter(graph()).static_order())  # a circle is an error that names it
    assert sorted(order) == sorted(graph())


def test_imports_are_found_where_they_run() -> None:
    tree = ast.parse(
        "import sstune.rules\n"
        "from sstune import tasks\n"
        "if TYPE_CHECKING:\n    from sstune import cli\nelse:\n    from sstune import runs\n"
        "class A:\n    from sstune.schema import Norm\n    def f(self):\n        from sstune import report\n"
    )
    expected = ["sstune.rules", "sstune.tasks", "sstune.runs", "sstune.schema.Norm"]
    assert sorted(imports(tree)) == sorted(expected)


def test_the_glossary_is_short() -> None:
    glossary = PAGE.partition("## Glossary")[2].partition("##")[0]
    entries = [line.strip("| ").split(" | ") for line in glossary.splitlines() if line.startswith("| ")]
    heading, *nouns = entries
    assert heading == ["noun", "meaning", "in the code"]
    assert 20 <= len(nouns) <= 28
    assert [entry for entry in nouns if len(entry) != 3 or not re.fullmatch(r"`[\w.]+`", entry[2])] == []


def test_what_the_page_names_exists() -> None:
    names = {*defined(), "attack=audit"}
    source = "\n".join(path.read_text(encoding="utf-8") for path in TREES)
    for name in re.findall(r"`([^`]+)`", PAGE):
        if "/" in name:
            assert (ROOT / name).exists(), name
        elif re.search(r"\.(pt|json)$", name):
            assert f'"{name}"' in source, name
        else:
            assert name in names, name
