"""Atomic writes and checked reads of a run's files. Imports no torch."""

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
from typing import Any, BinaryIO, TypeVar

T = TypeVar("T")
# Environment variable by which worker processes know when their command started, in seconds since 1970.
BEGAN = "SSTUNE_BEGAN"


# Errors of the process or the system, after which the file itself may be intact.
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
    """A file or directory cannot be written or read; the message gives path, reason and what is intact."""

    def __str__(self) -> str:
        return str(self.strerror)


@contextmanager
def explained(doing: str, path: Path, intact: str = "") -> Iterator[None]:
    """Convert an ``OSError`` raised inside to a ``StorageError`` that names the operation and the path.

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
    """sha256 of a file's content, cached by path, size and time of modification.

    Raises:
        OSError: it cannot be read, or is not a regular file: reading a FIFO or a device might never end.
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
    """The type of a path that is not a regular file, in words."""
    kinds = {stat.S_IFDIR: "directory", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(status.st_mode), "device")


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file atomically; see :func:`write_file`."""
    write_file(path, lambda file: file.write(content))


def write_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file atomically and sync it to disk: a kill or a full disk leaves the previous file intact.

    Args:
        write: writes the content to the binary file that it is given.

    Raises:
        StorageError: it cannot be written.
    """
    intact = f"; the earlier {path.name} is intact" if path.exists() else ""
    with explained("writing", path, intact):
        descriptor, temporary = _temporary(path)
        try:
            with os.fdopen(descriptor, "wb") as file:
                write(file)
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
    """Create a hidden file beside ``path``, locked while it is open, and remove unlocked ones of killed
    processes."""
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
        os.close(descriptor)  # another process removed it before it was locked


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_bytes(path, text.encode(errors="backslashreplace"))  # file names may be invalid Unicode


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, keys sorted.

    Raises:
        FloatingPointError: a number is NaN or infinite, which JSON cannot represent; names its key.
    """
    for key, value in _floats(content):
        if not math.isfinite(value):
            raise FloatingPointError(f"{path}: {key} is {value}, expected a finite number")
    write_text(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def _floats(content: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """Every float in nested lists and mappings, with its dotted key: ``measurements.1.seconds``."""
    if isinstance(content, float):
        yield key, content
    elif isinstance(content, dict | list):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        for name, value in items:
            yield from _floats(value, f"{key}.{name}".lstrip("."))


def read_state(path: Path, read: Callable[[Path], T]) -> T | None:
    """Read a run's state from a zip file (torch's or NumPy's) with ``read``.

    None if the file does not exist or is damaged. A damaged file (wrong checksums, or ``read`` fails) is
    renamed by :func:`set_aside`.

    Raises:
        StorageError: the file cannot be read now, but may be intact.
    """
    if not os.path.lexists(path):
        return None
    with explained("reading", path):
        try:
            check_zip(path)
            return read(path)
        except MemoryError:
            raise
        except Exception as error:  # a damaged file may raise anything
            if isinstance(error, OSError) and error.errno in _NOT_THE_FILES:
                raise
            set_aside(path, error)
            return None


def check_zip(path: Path) -> None:
    """Verify the checksum of every member of a zip file, which ``torch.load`` does not.

    Raises:
        ValueError: not a regular file, or a wrong checksum.
        zipfile.BadZipFile: not a zip file, or an incomplete one.
    """
    if not path.is_file():
        raise ValueError("not a file")
    with zipfile.ZipFile(path) as file:
        if (name := file.testzip()) is not None:
            raise ValueError(f"wrong checksum of {name}")


def in_short(why: BaseException | str) -> str:
    """The message of an error, shortened to fit into one line with a path."""
    said = why.strerror if isinstance(why, OSError) and why.strerror else str(why)
    return textwrap.shorten(said, 40, placeholder=" …") or type(why).__name__


def set_aside(path: Path, why: BaseException | str) -> None:
    """Rename a damaged file to ``damaged.NAME`` (``damaged.2.NAME`` ...), and print a line about it."""
    names = ("damaged" if number == 1 else f"damaged.{number}" for number in count(1))
    new = next(new for name in names if not os.path.lexists(new := path.with_name(f"{name}.{path.name}")))
    with explained("setting aside", path):
        path.rename(new)
    line = f"sstune: {path}: cannot be used ({in_short(why)}); renamed to {new.name}, starting over"
    print(line, file=sys.stderr, flush=True)
