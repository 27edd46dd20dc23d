"""Whether a path that somebody has written names something."""

from __future__ import annotations

from pathlib import Path

LONGEST_NAME = 255  # bytes, of most file systems


def exists(text: str) -> bool:
    """Whether there is a file or directory of this path, ``~`` being one's home."""
    try:
        return Path(text).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long a name, nobody's home, a zero byte
        return False


def place_problem(text: str) -> str | None:
    """Why nothing can be written below this path, or None."""
    if any(len(part.encode(errors="replace")) > LONGEST_NAME for part in Path(text).parts):
        return f"has a name of more than {LONGEST_NAME} bytes in it"
    try:
        place = Path(text).expanduser()
    except RuntimeError:
        return f"{text} begins with the home of nobody here; write ./{text} for a directory of that name"
    there = next((path for path in (place, *place.parents) if exists(str(path))), None)
    return None if there is None or there.is_dir() else f"{there} is a file, expected a directory"
