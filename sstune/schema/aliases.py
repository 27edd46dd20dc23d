"""Earlier names of keys, which command lines, presets and stored configurations may still use.

Identities and result rows use the earlier names, so that renaming a key does not change identities.
"""

from __future__ import annotations

import re
from typing import Any

# earlier name -> present name
ALIASES = {
    "task.adversarial": "adversary.attack",
    "task.adversarial_eps": "adversary.eps",
    "task.adversarial_step_size": "adversary.step_size",
    "model.import": "model.factory",
}
_FIRST_NAMES = {new: old for old, new in ALIASES.items()}


def renamed(override: str) -> str:
    """A command-line override with the present name of its key."""
    prefix, key, rest = re.match(r"([+~]*)([^=@]*)(.*)", override, re.DOTALL).groups()  # type: ignore[union-attr]
    return f"{prefix}{ALIASES.get(key, key)}{rest}"


def first_name(key: str) -> str:
    """The name of a key in identities and result rows."""
    return _FIRST_NAMES.get(key, key)


def under_present_names(values: dict[str, Any]) -> dict[str, Any]:
    """Stored nested values, with each key under its present name."""
    return _moved(values, ALIASES)


def under_first_names(values: dict[str, Any]) -> dict[str, Any]:
    """Nested values, with each key under the name in identities and result rows."""
    return _moved(values, _FIRST_NAMES)


def _moved(values: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """A copy of ``values`` with the keys of ``names`` renamed; a section left without keys is omitted."""
    moved = {name: dict(value) if isinstance(value, dict) else value for name, value in values.items()}
    for old, new in names.items():
        (section, key), (new_section, new_key) = old.split("."), new.split(".")
        owner, target = moved.get(section), moved.setdefault(new_section, {})
        if isinstance(owner, dict) and isinstance(target, dict) and key in owner:
            target[new_key] = owner.pop(key)
        for name in (section, new_section):
            if moved.get(name) == {}:
                del moved[name]
    return moved
