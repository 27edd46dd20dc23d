"""What Hydra and OmegaConf find wrong, in one line: file or key, what was expected, the nearest spelling."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields

from hydra.errors import OverrideParseException

from sstune.catalogue import options
from sstune.schema import GROUPS, AuditConfig, RunConfig, nearest, nearest_key


def explain(error: BaseException, command: str) -> str:
    """Hydra's or OmegaConf's error in one line: file or key, what was expected, the nearest spelling."""
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read as KEY=VALUE ({str(error).splitlines()[0]})"
    messages = [str(link) for link in _chain(error)]
    text = "\n".join(messages)
    where = re.search(r"In '((?:experiment|local)/[^']+)'", text)
    prefix = f"conf/{where[1]}.yaml: " if where else ""

    option = re.search(r"Could not find '([^']+)/([^'/]*)'", text)
    if option and option[1] in [*GROUPS, "experiment"]:
        return f"{prefix}{option[1]}: there is no {option[2]!r}, {nearest(option[2], options(option[1]))}"
    sweep = re.search(r"Ambiguous value for argument '([^']+)'", text)
    if sweep:
        return f"{sweep[1]}: several values need -m: sstune {command} -m {sweep[1]}"
    key = re.search(r"full_key: (\S+)", text) or re.search(r"Could not override '([^']+)'", text)
    if key and re.search(r"Key '[^']*' (?:is )?not in|is not in struct|Could not override", text):
        if key[1] in known_keys():
            return f"{prefix}{key[1]}: the chosen {key[1].partition('.')[0]} has no such key"
        return f"{prefix}{key[1]}: no such key, {nearest_key(key[1], known_keys())}"
    if key:
        stated = next(message for message in messages if "full_key" in message)
        return f"{prefix}{key[1]}: {stated.splitlines()[0]}"
    return prefix + next(line for line in text.splitlines() if line.strip())


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def known_keys() -> set[str]:
    """Every key that some configuration has, dotted."""
    keys = {item.name for item in fields(RunConfig)} | {"experiment", "model.import"}
    keys |= {f"audit.{item.name}" for item in fields(AuditConfig)}
    for group, kinds in GROUPS.items():
        for kind in kinds.values():
            keys |= {f"{group}.{item.name}" for item in fields(kind)}
    return keys
