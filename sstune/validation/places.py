"""Checks of paths in a configuration."""

from __future__ import annotations

import re
from pathlib import Path

LONGEST_NAME = 255  # bytes, of most file systems


def names_factory(path: str) -> bool:
    """Whether a path is no file but of the form ``package.module:factory``."""
    return re.fullmatch(r"[\w.]+:\w+", path) is not None and not exists(path)


def exists(text: str) -> bool:
    """Whether a file or directory of this path exists; ``~`` is the home directory."""
    try:
        return Path(text).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # name too long, no such user, a zero byte
        return False


def place_problem(text: str) -> str | None:
    """Why files cannot be written below this path, or None."""
    if any(len(part.encode(errors="replace")) > LONGEST_NAME for part in Path(text).parts):
        return f"has a component of more than {LONGEST_NAME} bytes"
    try:
        place = Path(text).expanduser()
    except RuntimeError:
        return f"{text} begins with the home of an unknown user; write ./{text} for a directory of that name"
    there = next((path for path in (place, *place.parents) if exists(str(path))), None)
    return None if there is None or there.is_dir() else f"{there} is a file, expected a directory"
