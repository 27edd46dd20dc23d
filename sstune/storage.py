"""Files of a run on disk: written whole or not at all, checked when they are read. Imports no torch."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import math
import os
import stat
import sys
import tempfile
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
# The variable that tells a command line's workers when it began, in seconds since 1970: what was written
# earlier is not its own.
BEGAN = "SSTUNE_BEGAN"


# What keeps a process from reading a file that may be sound.
_NOT_THE_FILES = {
    errno.EACCES,
    errno.EPERM,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
}


class StorageError(OSError):
    """A file or directory cannot be written or read: the message says which, why, and what is intact."""

    def __str__(self) -> str:
        return str(self.strerror)


@contextmanager
def explained(doing: str, path: Path, intact: str = "") -> Iterator[None]:
    """Inside, an error of the operating system says what it kept us from ``doing`` to which file.

    Raises:
        StorageError: such as "no space left on /disk while writing /disk/run/model.pt".
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        number = error.errno or errno.EIO
        reason = os.strerror(number)
        if number == errno.ENOSPC:
            reason = f"no space left on {_mount_point(path)}"
        elif number == errno.ENOENT and doing == "writing" and not path.parent.exists():
            reason = f"{path.parent} is gone"
        said = f"{reason[0].lower()}{reason[1:]} while {doing} {path}{intact}"
        raise StorageError(number, said) from error


def _mount_point(path: Path) -> Path:
    place = Path(os.path.realpath(path))
    while not place.is_mount():
        place = place.parent
    return place


def file_digest(path: Path) -> str:
    """sha256 of a file's content; taken once per process and (path, size, time of modification).

    Raises:
        OSError: it cannot be read, or is no regular file: reading a FIFO or a device might never end.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, f"is a {kind_of(status)}, not a file", str(path))
    return _file_digest(path.resolve(), status.st_size, status.st_mtime_ns)


@cache
def _file_digest(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def kind_of(status: os.stat_result) -> str:
    """What lies at a path that is no regular file, in words."""
    kinds = {stat.S_IFDIR: "directory", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(status.st_mode), "device")


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file whole or not at all, synced to disk: a kill or a full disk leaves the old one as it was.

    Raises:
        StorageError: it cannot be written.
    """
    intact = f"; the earlier {path.name} is intact" if path.exists() else ""
    with explained("writing", path, intact):
        descriptor, temporary = _temporary(path)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                mask = os.umask(0)
                os.umask(mask)
                os.fchmod(descriptor, 0o666 & ~mask)
                os.fsync(descriptor)
                os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _temporary(path: Path) -> tuple[int, Path]:
    """A new hidden file beside ``path``, locked while it is open; those that nobody locks, left behind by
    killed processes, are removed."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(OSError), leftover.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()
    while True:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.path.exists(name):
            return descriptor, Path(name)
        os.close(descriptor)  # another process took it for a leftover before it was locked


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_bytes(path, text.encode(errors="backslashreplace"))  # names of files need not be Unicode


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all, keys sorted.

    Raises:
        FloatingPointError: a number is NaN or infinite, which JSON does not know; names its key.
    """
    for key, value in _floats(content):
        if not math.isfinite(value):
            raise FloatingPointError(f"{path}: {key} is {value}, expected a finite number")
    write_text(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def _floats(content: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """Every float in nested lists and mappings, with the keys that lead to it: ``measurements.1.seconds``."""
    if isinstance(content, float):
        yield key, content
    elif isinstance(content, dict | list):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        for name, value in items:
            yield from _floats(value, f"{key}.{name}".lstrip("."))


def read_state(path: Path, read: Callable[[Path], T]) -> T | None:
    """What ``read`` makes of a zip file (torch's or NumPy's) in which a run keeps its state.

    None where there is none, or none to go on from: a file whose checksums are wrong or that ``read`` raises
    an error about is set aside, so that the run starts from what is sound.

    Raises:
        StorageError: it may be sound, and this process cannot read it now.
    """
    if not os.path.lexists(path):
        return None
    with explained("reading", path):
        try:
            check_zip(path)
            return read(path)
        except MemoryError:
            raise
        except Exception as error:  # of a damaged file, a reader may raise anything
            if isinstance(error, OSError) and error.errno in _NOT_THE_FILES:
                raise
            set_aside(path, error)
            return None


def check_zip(path: Path) -> None:
    """Compare every member of a zip file with its checksum, which ``torch.load`` does not do.

    Raises:
        ValueError: it is no regular file, or a member's content is not what was written.
        zipfile.BadZipFile: it is no whole zip file.
    """
    if not path.is_file():
        raise ValueError("not a file")
    with zipfile.ZipFile(path) as file:
        if (name := file.testzip()) is not None:
            raise ValueError(f"wrong checksum of {name}")


def in_short(why: BaseException | str) -> str:
    """What an error says, as much of it as goes into one line with the path of a run's file."""
    said = why.strerror if isinstance(why, OSError) and why.strerror else str(why)
    return textwrap.shorten(said, 40, placeholder=" …") or type(why).__name__


def set_aside(path: Path, why: BaseException | str) -> None:
    """Keep what is damaged under a new name, "damaged.NAME" or "damaged.2.NAME", and say so in one line."""
    names = ("damaged" if number == 1 else f"damaged.{number}" for number in count(1))
    new = next(new for name in names if not os.path.lexists(new := path.with_name(f"{name}.{path.name}")))
    with explained("setting aside", path):
        path.rename(new)
    line = f"sstune: {path}: cannot be used ({in_short(why)}); kept as {new.name}, begun anew"
    print(line, file=sys.stderr, flush=True)
