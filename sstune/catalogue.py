"""The options of each config group, from the files under ``conf/`` and from other packages.

Imports no torch.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sstune.schema import GROUPS, RequestError, nearest
from sstune.schema.options import ADDED

_PACKAGE = Path(__file__).resolve().parent
# Installed, conf/ lies inside the package; in a checkout, beside it.
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
_FREE = "???"


class Option(NamedTuple):
    """An option: its schema (a key of ``GROUPS[group]``) and its name, None if the user gives it."""

    schema: str | None
    name: str | None


def options(group: str) -> list[str]:
    """Names of a config group's options.

    Raises:
        ValueError: an option of another package is also in ``conf/``.
    """
    files, added = _options(CONF / group), tuple(ADDED.get(group, ()))
    if taken := set(files) & set(added):
        raise ValueError(f"{group}: {', '.join(taken)} exists already")
    return sorted((*files, *added))


@cache
def _options(folder: Path) -> tuple[str, ...]:
    return tuple(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def option(group: str, chosen: str) -> Option:
    """Schema and name of the option ``chosen``, its own or those of the options in its defaults list."""
    if added := ADDED[group].get(chosen):
        return Option(chosen, added.values["name"])
    return _option(CONF / group, chosen)


@cache
def _option(folder: Path, chosen: str) -> Option:
    path = folder / f"{chosen}.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RequestError(f"{path}: cannot be read ({error})") from error
    content = content if isinstance(content, dict) else {}
    schema, name = None, None
    for entry in content.get("defaults") or []:
        if isinstance(entry, str) and entry != "_self_":
            schema, name = _option(folder, entry)
        elif isinstance(entry, dict):
            schema = next((str(value) for key, value in entry.items() if "/schema/" in key), schema)
    name = content.get("name", name)
    return Option(schema, None if name == _FREE else name)


def schemas(group: str, name: str) -> list[type]:
    """The dataclasses that may have this ``name``; those for any name last."""
    return list(_schemas(CONF, group, name, tuple(options(group))))


@cache
def _schemas(conf: Path, group: str, name: str, chosen: tuple[str, ...]) -> tuple[type, ...]:
    known = [option(group, each) for each in chosen]
    found = [each.schema for wanted in (name, None) for each in known if each.name == wanted]
    return tuple(GROUPS[group][schema] for schema in dict.fromkeys(found) if schema in GROUPS[group])


def name_problem(group: str, section: Any) -> str | None:
    """Message if no option has this name and dataclass (an SgdConfig named adamw); otherwise None."""
    kind = type(section)
    if kind in schemas(group, section.name):
        return None
    said = [option(group, chosen) for chosen in options(group)]
    own = {each.name for each in said if each.name and each.schema and GROUPS[group].get(each.schema) is kind}
    return f"{group}.name: a {kind.__name__} cannot be {section.name!r}, {nearest(str(section.name), own)}"


def choice_problem(group: str, chosen: str, name: str) -> str | None:
    """Message if the option ``chosen`` has another name than ``name``; otherwise None."""
    own = option(group, chosen).name
    if own is None or own == name:
        return None
    known = options(group)
    hint = f"write {group}={name}" if name in known else nearest(str(name), known)
    return f"{group}.name: follows from {group}={chosen}; for another {group}, {hint}"
