"""Image files in a directory tree or a tar archive: their digests, their bytes, their split and class.

Imports no torch: a run's identity is computed from here before anything heavy is loaded.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sstune.schema import DatasetConfig, DownloadedFolderConfig, FolderConfig, MnistConfig, RequestError
from sstune.storage import file_digest

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"},
)
MAX_FILE_BYTES = 256 * 2**20  # an image file beyond this is a mistake or a trap; it is never read into memory


def fingerprint(config: DatasetConfig) -> str | None:
    """Content digest of the data a configuration names; part of a run's identity.

    Returns:
        A folder dataset: sha256 (hex) of the archive, or of the sorted (relative path, size) of a directory's
        images, which is quick but does not see a file edited to the same size. A dataset that torchvision
        can download, from an image tree of one's own: that tree's. Other datasets: None.

    Raises:
        RequestError: the root cannot be read.
    """
    if not isinstance(config, FolderConfig | MnistConfig):
        return None
    root = Path(config.root).expanduser()
    downloaded = isinstance(config, DownloadedFolderConfig | MnistConfig)
    official = downloaded and (config.name == "flowers102" or not is_tree(root))  # flowers are no tree
    return None if official else digests(root)[0]


def is_tree(root: Path) -> bool:
    """Whether ``root`` is an archive, or a directory with a train split."""
    return root.is_file() or (root / "train").is_dir()


def digests(root: Path) -> tuple[str, str]:
    """The fingerprint of ``root``, and a digest that also changes when a directory's files are modified.

    An archive is hashed once per process and (path, size, time of modification), and its two digests are
    equal. A directory is scanned once per process, see :func:`scan`.

    Raises:
        RequestError: the root cannot be read.
    """
    try:
        if root.is_dir():
            found = scan(root.resolve())
            return found.lasting, found.momentary
        digest = file_digest(root)
        return digest, digest
    except OSError as error:
        raise RequestError(f"dataset.root: cannot read {root}: {error}") from error


@dataclass(frozen=True)
class Scan:
    """The image files below a directory: sorted relative paths, their sizes in bytes, and two digests.

    ``lasting`` is the sha256 (hex) of names and sizes, ``momentary`` of times of modification, too.
    """

    names: list[str]
    sizes: list[int]
    lasting: str
    momentary: str


@functools.cache
def scan(root: Path) -> Scan:
    """List a directory, once per process: a sweep's cells share what the first of them found.

    So a process takes a directory for what it was when first looked at, and images that are added, removed
    or edited while it runs are seen by the next process. ``scan.cache_clear()`` forgets.

    Args:
        root: resolved, for it is the key under which the answer is kept.

    Raises:
        OSError: a directory or file cannot be read.
    """
    names, sizes = list(_tree(root)), []
    lasting, momentary = hashlib.sha256(), hashlib.sha256()
    for name in names:
        status = (root / name).stat()
        sizes.append(status.st_size)
        lasting.update(os.fsencode(f"{name}\0{status.st_size}\0"))
        momentary.update(os.fsencode(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0"))
    return Scan(names, sizes, lasting.hexdigest(), momentary.hexdigest())


def read(root: Path, wanted: Callable[[str], bool] = bool) -> Iterator[tuple[str, bytes]]:
    """Every ``wanted`` image as (path relative to ``root`` with ``/``, its bytes), in the order it is stored.

    An archive is streamed, nothing is unpacked to disk and member names are never used as paths. Only
    regular files with an image suffix count; hidden ones (and macOS's ``__MACOSX``) do not.

    Raises:
        RequestError: unreadable, damaged, not a tar archive, or a file beyond ``MAX_FILE_BYTES``.
    """
    return _read_tree(root, wanted) if root.is_dir() else _read_archive(root, wanted)


def _read_tree(root: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    try:
        for name in filter(wanted, _tree(root)):
            _refuse_oversized(root, name, (root / name).stat().st_size)
            yield name, (root / name).read_bytes()
    except OSError as error:
        raise RequestError(f"dataset.root: cannot read {root}: {error}") from error


def _read_archive(root: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    links = 0
    try:
        with tarfile.open(root, "r:*") as archive:
            for member in archive:
                name = PurePosixPath(member.name.lstrip("/")).as_posix()
                if member.isdir() or not (_is_image(name) and wanted(name)):
                    continue
                file = archive.extractfile(member) if member.isreg() else None
                if file is None:
                    links += 1
                    continue
                _refuse_oversized(root, name, member.size)
                yield name, file.read()
                archive.members.clear()  # type: ignore[attr-defined]  # else it keeps every header
            _refuse_early_end(archive)
    except RequestError:
        raise
    except Exception as error:  # tarfile, zlib and lzma have their own each, and lzma may not be installed
        raise RequestError(f"dataset.root: {root} is damaged or no tar archive: {error}") from error
    if links:
        log.warning("%s: skipped %d links and special files that are named like images", root, links)


def _refuse_early_end(archive: tarfile.TarFile) -> None:
    """Behind the last member must lie zeros or nothing; tarfile itself takes a damaged header for the end."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"bad header at byte {archive.offset}")


def _refuse_oversized(root: Path, name: str, size: int) -> None:
    if size > MAX_FILE_BYTES:
        limit = f"an image file may have {MAX_FILE_BYTES:,}"
        raise RequestError(f"dataset.root: {name} in {root} has {size:,} bytes, {limit}")


def _tree(root: Path) -> Iterator[str]:
    """Relative paths of the image files below a directory, sorted; follows links, as ImageFolder does."""

    def fail(error: OSError) -> None:
        raise error

    names = []
    for folder, _, files in os.walk(root, onerror=fail, followlinks=True):
        prefix = Path(folder).relative_to(root)
        names += [(prefix / file).as_posix() for file in files]
    return iter(sorted(filter(_is_image, names)))


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden


def may_be_placed(name: str) -> bool:
    """Whether a path is deep enough for ``<split>/<class>/<image>``."""
    return name.count("/") >= 2


def place(names: Iterable[str]) -> dict[str, str]:
    """Map each path to its ``<split>/<class>/<image>``; paths that have none are left out.

    The split folders lie at the top, or all below one wrapping folder, which is taken off.
    """
    deep = [name for name in names if may_be_placed(name)]
    tops = {name.split("/", 1)[0] for name in deep}
    wrapped = len(tops) == 1 and any(name.count("/") >= 3 for name in deep)
    placed = {name: name.split("/", 1)[1] if wrapped else name for name in deep}
    return {name: path for name, path in placed.items() if may_be_placed(path)}
