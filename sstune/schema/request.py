"""Errors of a request, suggestions for misspelled names, and error lines."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Collection, Iterable

LONGEST_LINE = 200
_LONGEST_LIST = 120


class RequestError(Exception):
    """The request is invalid: one line per problem, exit status 2, no files are written.

    Args:
        problems: the messages; line breaks in them become blanks.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = tuple(_one_line(problem) for problem in problems)

    def __str__(self) -> str:
        return "\n".join(self.problems)


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a mistyped ``name``: the nearest known name, or a list of known names."""
    known = sorted(known)
    match = [each for each in known if each.casefold() == name.casefold()]
    match = match or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if match:
        return f"did you mean {match[0]!r}?"
    listed = f"known: {', '.join(known)}"
    if len(listed) <= _LONGEST_LIST:
        return listed
    return f"the nearest known: {', '.join(difflib.get_close_matches(name, known, n=3, cutoff=0.0))}"


def nearest_key(key: str, known: Collection[str]) -> str:
    """As :func:`nearest` for a dotted key; prefers keys with its last part (``bits``: ``task.bits``), and of
    these one in a section of a similar name (``optimiser.lr``: ``optimizer.lr``)."""
    section, _, last = key.casefold().rpartition(".")
    same = sorted(each for each in known if each.rpartition(".")[2].casefold() == last)
    sections = {each.rpartition(".")[0]: each for each in same}
    if similar := difflib.get_close_matches(section, sections, n=1):
        same = [sections[similar[0]]]
    if not 1 <= len(same) <= 3:
        return nearest(key, known)
    return f"did you mean {' or '.join(map(repr, same))}?"


def shown(text: str) -> str:
    """``text`` for a terminal: control characters and line breaks are escaped."""
    return "".join(
        character
        if character.isprintable() or unicodedata.category(character) == "Zs"
        else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )


def error_line(text: str) -> str:
    """``sstune: text`` in one line of at most :data:`LONGEST_LINE` characters, shortened in the middle."""
    line = f"sstune: {shown(_one_line(text))}"
    if len(line) <= LONGEST_LINE:
        return line
    end = LONGEST_LINE // 3
    return f"{line[: LONGEST_LINE - end - 3]} … {line[-end:]}"


def _one_line(text: str) -> str:
    return re.sub(r"\s*[\r\n]\s*", " ", text.strip())
