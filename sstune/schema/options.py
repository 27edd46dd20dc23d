"""Options of config groups that another package adds, in place of files under ``conf/``.

A package registers its class with the registry of the group (for example ``sstune.attacks.ATTACKS``), the
traits of an attack with :func:`sstune.schema.register_attack`, and its option with :func:`register_option`,
before ``sstune.cli.main`` is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

from sstune.schema.groups import GROUPS


@dataclass(frozen=True)
class AddedOption:
    """An option: its dataclass, and the values that differ from its defaults."""

    schema: type
    values: Mapping[str, Any]


# group -> option -> its registration
ADDED: dict[str, dict[str, AddedOption]] = {group: {} for group in GROUPS}


def register_option(group: str, name: str, schema: type, values: Mapping[str, Any] | None = None) -> None:
    """Add the option ``group=name`` to the command line.

    Args:
        schema: the dataclass of its keys, derived from the group's own (``AttackConfig``, ``RuleConfig``,
            ``DatasetConfig`` ...).
        values: values of keys that differ from the defaults; ``name`` is set to the option's name.

    Raises:
        ValueError: the group does not exist, or has an option of this name.
        TypeError: ``schema`` is not a dataclass.
    """
    if group not in GROUPS:
        raise ValueError(f"{group!r} is not a config group, known: {', '.join(GROUPS)}")
    if not is_dataclass(schema):
        raise TypeError(f"{group}={name}: {schema!r} is not a dataclass")
    if name in GROUPS[group]:
        raise ValueError(f"{group}={name}: this option exists already")
    GROUPS[group][name] = schema
    ADDED[group][name] = AddedOption(schema, {"name": name, **(values or {})})
