"""Errors of Hydra and OmegaConf as one line: file or key, what was expected, and the nearest spelling."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import is_dataclass
from enum import StrEnum
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from hydra.core.override_parser.types import Override, OverrideType

from sstune.catalogue import options
from sstune.schema import GROUPS, nearest, nearest_key
from sstune.schema.run import sections

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def unreadable(override: str) -> str:
    """Message for a word that is not KEY=VALUE in Hydra's grammar."""
    hint = """; with other characters in it, KEY="'VALUE'" """.rstrip() if "=" in override else ""
    return f"{override}: cannot be read as KEY=VALUE{hint}"


def in_override(override: Override, command: str) -> str | None:
    """Message for a single invalid override; None if it is valid."""
    key, (written, _, text) = override.key_or_group, str(override.input_line).partition("=")
    within = _type_of(key)
    if not key:
        return f"{override.input_line}: cannot be read as KEY=VALUE"
    if override.type is not OverrideType.CHANGE:
        return f"{override.input_line}: keys cannot be added or removed; to set one, write KEY=VALUE"
    if override.package is not None or within is None:
        return no_such_key(key, written)
    if override.is_sweep_override():
        return f"{key}: several values need -m: sstune {command} -m {shlex.quote(str(override.input_line))}"
    value = override.value()
    if key in (*GROUPS, "experiment") and value not in options(key):
        return f"{key}: there is no {text!r}, {nearest(text, options(key))}"
    nested = isinstance(value, list) and any(isinstance(each, list | dict) for each in value)
    if nested or (within is bool and not isinstance(value, bool | str) and value not in (0, 1)):
        return in_value(override)  # OmegaConf would accept it
    return None


def _type_of(key: str) -> Any:
    """The type of a key, or of a name within a mapping (optimizer.lr_factors.head); None if unknown."""
    if key in types():
        return types()[key]
    mappings = {known: hint for known, hint in types().items() if get_origin(hint) is dict}
    return next((get_args(hint)[1] for known, hint in mappings.items() if key.startswith(f"{known}.")), None)


def in_value(override: Override) -> str:
    """Message for an override with an invalid value."""
    key, text = override.key_or_group, str(override.input_line).partition("=")[2]
    hint = _type_of(key)
    null = " or null" if type(None) in get_args(hint) else ""
    plain = next((each for each in get_args(hint) if each is not type(None)), hint) if null else hint
    if isinstance(plain, type) and issubclass(plain, StrEnum):
        return f"{key}: there is no {text!r}, {nearest(text, [each.name for each in plain])}"
    if is_dataclass(plain) or plain is Any:
        return f"{key}: {text!r} has keys of its own, set these"
    if get_origin(plain) is list and text != "null" and not text.startswith(("[", "{")):
        return f"{key}: {text!r} is not a list, write {key}=[{text}]"
    return f"{key}: {text!r} is not {_words(plain)}{null}"


def _words(hint: Any) -> str:
    if get_origin(hint) is list:
        inner = get_args(hint)[0]
        names = [each.name for each in inner] if issubclass(inner, StrEnum) else []
        return f"a list of {', '.join(names)}" if names else f"a list of {_words(inner).removeprefix('a ')}s"
    if get_origin(hint) is dict:
        return "a mapping, {NAME:VALUE}"
    return _WORDS.get(hint, "a text")


def explain(error: BaseException, command: str) -> str:
    """An error of Hydra or OmegaConf as one line with file or key, what was expected, and a suggestion."""
    messages = [str(link) for link in _chain(error)]
    text = "\n".join(messages)
    where = re.search(r"In '((?:experiment|local)/[^']+)'", text)
    prefix = f"conf/{where[1]}.yaml: " if where else ""

    option = re.search(r"Could not find '([^']+)/([^'/]*)'", text)
    if option and option[1] in [*GROUPS, "experiment"]:
        return f"{prefix}{option[1]}: there is no {option[2]!r}, {nearest(option[2], options(option[1]))}"
    key = re.search(r"full_key: (\S+)", text) or re.search(r"Could not override '([^']+)'", text)
    if key and re.search(r"Key '[^']*' (?:is )?not in|is not in struct|Could not override", text):
        if key[1] in known_keys():
            return f"{prefix}{key[1]}: the chosen {key[1].partition('.')[0]} has no such key"
        return prefix + no_such_key(key[1])
    if key:
        stated = [message for message in messages if "full_key" in message][-1]  # the original error
        return f"{prefix}{key[1]}: {stated.splitlines()[0]}"
    return prefix + next(line for line in text.splitlines() if line.strip())


def no_such_key(key: str, written: str | None = None) -> str:
    """Message for an unknown key; ``written``: its spelling on the command line."""
    return f"{written or key}: no such key, {nearest_key(key, known_keys())}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@cache
def types() -> dict[str, Any]:
    """Every dotted key and its type."""
    found: dict[str, Any] = {"experiment": str, "local": str}
    for section, kinds in sections().items():
        for kind in kinds:
            found |= {f"{section}.{name}".lstrip("."): hint for name, hint in get_type_hints(kind).items()}
    return found


def known_keys() -> set[str]:
    """Every dotted key."""
    return set(types()) - {"local"}
