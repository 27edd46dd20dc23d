"""The single values of a configuration, and checks of its texts."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

MOST_VALUES = 10_000
_DEEPEST = 8
_SECTIONS = 2  # levels of keys: optimizer.lr
_LONGEST = 4096
# Unicode categories that cannot be printed or written to a text file.
_UNWRITABLE = {"Cc", "Cs", "Zl", "Zp"}


def leaves(value: Any) -> dict[str, list[Any]]:
    """Dotted key -> its single values, including the items of lists and the names and values of mappings.

    Args:
        value: a configuration, or the plain values of one.

    Raises:
        ValueError: nested too deeply, or more values than any configuration has.
    """
    found: dict[str, list[Any]] = {}
    for number, (key, leaf) in enumerate(_walk(value, "", 0)):
        if number == MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES} values")
        found.setdefault(key, []).append(leaf)
    return found


def _walk(value: Any, key: str, depth: int) -> Iterator[tuple[str, Any]]:
    if depth > _DEEPEST:
        raise ValueError(f"{key}: nested more than {_DEEPEST} levels deep")
    if is_dataclass(value):
        value = {item.name: getattr(value, item.name) for item in fields(value)}
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if depth < _SECTIONS:
                yield from _walk(inner, f"{key}.{name}".lstrip("."), depth + 1)
            else:
                yield key, name
                yield from _walk(inner, key, depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _walk(inner, key, depth + 1)
    else:
        yield key, value


def unwritable(values: Mapping[str, list[Any]]) -> Iterator[str]:
    """Every text that is empty, too long, or holds control characters or references."""
    for key, held in values.items():
        for text in held:
            if isinstance(text, str) and (problem := text_problem(text)):
                yield f"{key}: {problem}"


def text_problem(text: str) -> str | None:
    """Why a configuration cannot hold this text, or None."""
    if not text:
        return "is empty, expected a value"
    if len(text) > _LONGEST:
        return f"has {len(text)} characters, at most {_LONGEST} are allowed"
    if any(unicodedata.category(character) in _UNWRITABLE for character in text):
        return f"{text!r} holds a control character"
    if "${" in text:
        return f"{text!r} holds ${{, a reference to another value; give that value instead"
    return None
