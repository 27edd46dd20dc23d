"""Requests that are wrong, and what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RequestError(Exception):
    """The request was wrong: shown as one line per problem, exit status 2, nothing touched."""


def printable(text: str) -> str:
    """``text`` on one line for a person: control characters, line ends and undecodable bytes as escapes."""
    shown = (char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return "".join(shown)


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a mistyped ``name``: the nearest known spelling, or the list of known ones."""
    known = sorted(known)
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {match[0]!r}?" if match else f"known: {', '.join(known)}"
