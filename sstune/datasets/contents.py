"""The image files in a directory, and the sha256 of each, which is cached.

Imports no torch, because a run's identity is computed from here before torch is loaded.
"""

from __future__ import annotations

import functools
import hashlib
import os
import stat
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from sstune.datasets import cache
from sstune.schema import RequestError, shown
from sstune.storage import kind_of

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"},
)
MAX_FILE_BYTES = 256 * 2**20  # larger files are never read into memory
_MUCH = 2**30  # bytes; hashing more is announced, and done by one process at a time
_SETTLED = 2 * 10**9  # ns; a file changed later than this may change again at the same time stamp: not cached

Stamps = npt.NDArray[np.int64]  # [N, 3]: size, times of modification and of any change (ns)


@dataclass(frozen=True, eq=False)
class Scan:
    """The image files in a directory, by sorted relative paths.

    ``content``: sha256 (hex) of their names and contents. ``names_and_sizes``: that of their names and sizes,
    the fingerprint of earlier versions. ``changed``: latest time of modification, in seconds since the epoch.
    """

    root: Path
    names: list[str]
    stamps: Stamps
    content: str
    names_and_sizes: str
    changed: float

    def check_unchanged(self) -> None:
        """Raise RequestError if a file has changed since the directory was scanned."""
        for name, known in zip(self.names, self.stamps.tolist(), strict=True):
            try:
                found = _stamp((self.root / name).stat())
            except OSError:
                found = []
            if found != known:
                where = f"{shown(name)} in {self.root}"
                raise RequestError(
                    f"dataset.root: {where} changed while this process was running; run the command again"
                )


@functools.cache
def scan(root: Path, kept_in: str | None = None) -> Scan:
    """List a directory and hash its images, once per process: the cells of a sweep share the result.

    Changes after the first call are not seen; see :meth:`Scan.check_unchanged`. ``scan.cache_clear()`` drops
    the result.

    Args:
        root: resolved path; the key of the result.
        kept_in: directory of the cache of digests; None: no cache.

    Raises:
        OSError: a directory or file cannot be read.
        RequestError: an image is not a regular file or too large, or a link forms a loop.
    """
    found = sorted(walk(root), key=lambda entry: entry[0])
    names = [name for name, _ in found]
    stamps = np.array([_stamp(status) for _, status in found], np.int64).reshape(len(found), 3)
    digests = _digests(root, names, stamps, kept_in)
    content, names_and_sizes = hashlib.sha256(b"contents"), hashlib.sha256()
    for name, size, digest in zip(names, stamps[:, 0].tolist(), digests, strict=True):
        content.update(b"%b\0%b" % (os.fsencode(name), digest.tobytes()))
        names_and_sizes.update(b"%b\0%d\0" % (os.fsencode(name), size))
    changed = float(stamps[:, 1].max(initial=0)) / 10**9
    return Scan(root, names, stamps, content.hexdigest(), names_and_sizes.hexdigest(), changed)


def is_image(name: str) -> bool:
    """Whether a path has an image suffix, and no part of it is hidden (or macOS's ``__MACOSX``)."""
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not any(map(_is_hidden, path.parts))


def _is_hidden(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"


def walk(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield relative paths of the image files in a directory, in any order; follows links, as ImageFolder.

    Raises:
        OSError: a directory cannot be read.
        RequestError: see :func:`scan`.
    """
    pending: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", (_identity(root.stat()),))]
    while pending:
        prefix, above = pending.pop()
        with os.scandir(root / prefix) as entries:
            for entry in entries:
                name = prefix + entry.name
                if _is_hidden(entry.name):
                    continue
                status = _status(entry, name, root)
                if status is None:
                    continue
                if stat.S_ISDIR(status.st_mode):
                    if _identity(status) in above:
                        raise _refused(name, root, "is a link to a folder that contains it")
                    pending.append((f"{name}/", (*above, _identity(status))))
                elif is_image(name):
                    if not stat.S_ISREG(status.st_mode):
                        raise _refused(name, root, f"is a {kind_of(status)}, not an image file")
                    refuse_oversized(root, name, status.st_size)
                    yield name, status


def _status(entry: os.DirEntry[str], name: str, root: Path) -> os.stat_result | None:
    """The status of the entry's target; None if it cannot be read and is not an image."""
    try:
        return entry.stat()
    except OSError as error:
        if entry.is_dir(follow_symlinks=False):
            raise
        if is_image(name):
            raise _refused(name, root, f"cannot be read ({error.strerror})") from error
        return None


def refuse_oversized(root: Path, name: str, size: int) -> None:
    """Raise RequestError for a file that is too large to be an image."""
    if size > MAX_FILE_BYTES:
        raise _refused(name, root, f"has {size:,} bytes; at most {MAX_FILE_BYTES:,} are allowed")


def _refused(name: str, root: Path, why: str) -> RequestError:
    return RequestError(f"dataset.root: {shown(name)} in {root} {why}")


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _stamp(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _digests(root: Path, names: Sequence[str], stamps: Stamps, kept_in: str | None) -> npt.NDArray[np.uint8]:
    """The sha256 of each file, [N, 32]: from the cache if its stamp is unchanged, otherwise computed."""
    path = None if kept_in is None else cache.cache_file(kept_in, "contents", str(root))
    digests, unknown = _known(path, names, stamps)
    much = int(stamps[unknown, 0].sum()) > _MUCH
    with cache.exclusive(f"contents-{root}") if much else nullcontext():
        if much:  # another process may have read them meanwhile
            digests, unknown = _known(path, names, stamps)
            print(f"  hashing {len(unknown):,} images of {root}, once", flush=True)
        now = time.time_ns()
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(unknown), 1024):
                part = unknown[start : start + 1024]
                read = list(pool.map(_digest, [root / names[row] for row in part]))
                digests[part] = np.frombuffer(b"".join(read), np.uint8).reshape(len(part), 32)
        settled = stamps[:, 2] < now - _SETTLED
        if path is not None and settled[unknown].any():
            kept = [names[row] for row in np.flatnonzero(settled).tolist()]
            cache.save_contents(path, kept, stamps[settled], digests[settled])
    return digests


def _known(
    path: Path | None, names: Sequence[str], stamps: Stamps
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Cached digests of these files, and the positions of those without one, int64 [n]."""
    digests = np.zeros((len(names), 32), np.uint8)
    stored = None if path is None else cache.load_contents(path)
    if stored is None:
        return digests, np.arange(len(names))
    row_of = {name: row for row, name in enumerate(stored[0])}
    rows = np.array([row_of.get(name, -1) for name in names], np.int64)
    same = rows >= 0
    same[same] = (stored[1][rows[same]] == stamps[same]).all(1)
    digests[same] = stored[2][rows[same]]
    return digests, np.flatnonzero(~same)


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
