"""Requests that are wrong, and what was probably meant."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable


class RequestError(Exception):
    """The request was wrong: shown as one line per problem, exit status 2, nothing touched."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a mistyped ``name``: the nearest known spelling, or the list of known ones."""
    known = sorted(known)
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {match[0]!r}?" if match else f"known: {', '.join(known)}"


def shown(text: str) -> str:
    """``text`` as a terminal may have it: in one line, control characters as their escapes."""
    return "".join(
        character
        if character.isprintable() or unicodedata.category(character) == "Zs"
        else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )
