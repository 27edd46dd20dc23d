"""Write docs/configuration.md, the reference of all configuration keys, from the fields that declare them.

python scripts/configuration_page.py
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import Field, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from omegaconf import MISSING

from sstune.catalogue import option, options
from sstune.identity import plain
from sstune.schema import GROUPS
from sstune.schema.aliases import ALIASES
from sstune.schema.keys import Identity, Range, default_of, key_of
from sstune.schema.run import sections
from sstune.storage import write_text

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
_WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text"}
_HEAD = """\
# Configuration

<!-- Written by scripts/configuration_page.py from the fields in sstune/schema/. Do not edit. -->

The keys of `sstune train`, `finetune` and `attack`. On a command line, `KEY=VALUE` sets a key, and
`GROUP=OPTION` chooses an option of a group. `conf/GROUP/OPTION.yaml` holds what an option sets
differently from the defaults below, `conf/train.yaml`, `conf/finetune.yaml` and `conf/attack.yaml` what a
command does, and `conf/experiment/` complete settings. A key without a default is set by one of these files,
or must be given. The option `--cfg job` shows the values that a command line gives.

Runs are identified by the values of their keys. Keys with an asterisk are not part of the identity: they do
not change what is measured, or what they name is part of it, such as the content of a file.
"""


def page() -> str:
    """The whole page."""
    alone = [_section(name, kinds[0]) for name, kinds in sections().items() if name not in GROUPS]
    return "\n".join([_HEAD, *alone, *map(_group, GROUPS), _earlier_names()])


def _section(name: str, kind: type) -> str:
    title = f"## `{name}`\n\n{_summary(kind)}\n" if name else "## Keys of every run\n"
    rows = [_row(name, item, kind) for item in _values_of(kind)]
    return "\n".join([title, *_table(["key", "default", "values", "meaning"], rows)])


def _group(name: str) -> str:
    """The options of a group, and each key with the options that have it."""
    of_schema: dict[str, list[str]] = {}
    for chosen in options(name):
        of_schema.setdefault(str(option(name, chosen).schema), []).append(chosen)
    having: dict[tuple[str, ...], list[str]] = {}
    for schema, kind in GROUPS[name].items():
        for item in _values_of(kind):
            having.setdefault(_row(name, item, kind), []).extend(of_schema[schema])
    base = next(iter(GROUPS[name].values())).__mro__[-2]
    rows = [
        (key, "all" if len(chosen) == len(options(name)) else ", ".join(sorted(chosen)), *rest)
        for (key, *rest), chosen in having.items()
    ]
    keys = [key for key, *_ in rows]
    rows.sort(key=lambda row: keys.index(row[0]))  # a key that means different things: together
    listed = ", ".join(f"`{each}`" for each in options(name))
    title = f"## `{name}`\n\n{_summary(base)} Options: {listed}.\n"
    return "\n".join([title, *_table(["key", "options", "default", "values", "meaning"], rows)])


def _earlier_names() -> str:
    title = "## Earlier names\n\nThey are still accepted. Identities and result rows keep them.\n"
    rows = [(f"`{old}`", f"`{new}`") for old, new in ALIASES.items()]
    return "\n".join([title, *_table(["earlier", "now"], rows)])


def _values_of(kind: type) -> list[Field[Any]]:
    """The fields of a dataclass that hold values, not sections."""
    hints = get_type_hints(kind)
    return [item for item in fields(kind) if not is_dataclass(hints[item.name]) and item.name != "command"]


def _row(section: str, item: Field[Any], kind: type) -> tuple[str, ...]:
    key, hint, default = key_of(item), get_type_hints(kind)[item.name], default_of(item)
    mark = r" \*" if key.identity is Identity.NEVER else ""
    shown = "" if default == MISSING else f"`{_yaml(default)}`"
    return f"`{f'{section}.{item.name}'.lstrip('.')}`{mark}", shown, _allowed(hint, key.within), key.help


def _yaml(value: Any) -> str:
    text = yaml.safe_dump(plain(value, names=True), default_flow_style=True, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")


def _allowed(hint: Any, within: Range) -> str:
    """The type and range of a key in words."""
    if NoneType in get_args(hint):
        (inner,) = (each for each in get_args(hint) if each is not NoneType)
        return f"{_allowed(inner, within)}; null"
    if get_origin(hint) is list:
        return f"list: {_allowed(get_args(hint)[0], within)}"
    if get_origin(hint) is dict:
        inner = get_args(hint)[1]
        return "mapping" if inner is Any else f"mapping to {_allowed(inner, within)}"
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return ", ".join(f"`{each.name}`" for each in hint)
    return f"{_WORDS[hint]}{_bounds(within)}"


def _bounds(within: Range) -> str:
    low = f" {'>' if within.above else '≥'} {within.low:.10g}" if within.low > -math.inf else ""
    high = f" ≤ {within.high:.10g}" if within.high < 1e6 else ""
    return f"{low}{' and' if low and high else ''}{high}"


def _summary(kind: type) -> str:
    return " ".join(str(kind.__doc__).split("\n\n")[0].split()).replace("``", "`")


def _table(head: list[str], rows: Sequence[tuple[str, ...]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [*(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines), ""]


if __name__ == "__main__":
    write_text(PAGE, page())
