"""Lock a directory for one process, and remove it if the work fails at once. Imports no torch."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sstune.schema import RequestError
from sstune.storage import explained, set_aside

LOCK = "lock"
# errors of mkdir that are due to the path, not to a full or broken disk
_WRONG_PLACE = {
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EINVAL,
}


class Locked(Exception):
    """Another process works in this directory."""


@contextmanager
def locked(directory: Path, wait: bool = False, worthless: Collection[str] = ()) -> Iterator[None]:
    """Hold the lock of ``directory``, which is created if missing; with ``wait``, wait for the lock.

    The lock is the kernel's (flock), which releases it when the process ends. If the work fails before any
    file other than the ``worthless`` ones was written, a directory created here is removed, with its parents
    that were created for it.

    Raises:
        Locked: another process holds the lock; the message names it.
        RequestError: the path cannot be a directory.
        StorageError: the directory cannot be created or locked.
    """
    descriptor, made = _lock(directory, wait)
    try:
        empty = os.listdir(directory) == [LOCK]
        _sign(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n")
        yield
    except BaseException:
        with suppress(OSError):
            if empty and set(os.listdir(directory)) <= {LOCK, *worthless}:
                for name in (*worthless, LOCK):
                    (directory / name).unlink(missing_ok=True)
                for place in (directory, *made):  # fails if it is not empty
                    place.rmdir()
        raise
    finally:
        _sign(descriptor, "")
        os.close(descriptor)


def make_directory(path: Path, key: str) -> None:
    """Create a directory with its parents; ``key`` is the configuration key that names it.

    Raises:
        RequestError: the path cannot be a directory.
        StorageError: the disk is full or broken.
    """
    try:
        with explained("making", path):
            for left in reversed(range(100)):
                try:
                    return path.mkdir(parents=True, exist_ok=True)
                except (FileExistsError, FileNotFoundError):  # another process creates and removes it
                    if not left or file_in_the_way(path):
                        raise
    except OSError as error:
        if error.errno not in _WRONG_PLACE:
            raise
        file = file_in_the_way(path)
        raise RequestError(
            f"{key}: {file} is a file, expected a directory" if file else f"{key}: {error}"
        ) from error


def file_in_the_way(path: Path) -> Path | None:
    """The nearest of ``path`` and its parents that exists and is not a directory, or None."""
    places = (place for place in (path, *path.parents) if os.path.lexists(place))
    return next((place for place in places if not place.is_dir()), None)


def _lock(directory: Path, wait: bool) -> tuple[int, list[Path]]:
    """Descriptor of the locked lock file, and the parent directories that were created for it.

    If another process removed the file while we waited, a new one is created.
    """
    path = directory / LOCK
    while True:
        made = [place for place in directory.parents if not os.path.exists(place)]
        make_directory(directory, "out")
        if path.is_dir():
            set_aside(path, "a directory, expected a file")
        with explained("locking", path):
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except FileNotFoundError:
                if path.is_symlink():
                    raise
                continue  # another process has removed the directory
            try:
                _wait_for(descriptor, directory, wait)
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                        return descriptor, made
            except BaseException:
                os.close(descriptor)
                raise
        os.close(descriptor)


def _wait_for(descriptor: int, directory: Path, wait: bool) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip()
        reason = f"{directory} is being run by {holder}"
        if not wait:
            raise Locked(reason) from None
        print(f"{reason}: waiting", flush=True)
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _sign(descriptor: int, text: str) -> None:
    """Write the holder into the lock file, for messages; on a full disk the lock holds without it."""
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
