"""Image files in a directory tree or a tar archive: their digests, their bytes, their split and class.

Imports no torch: a run's identity is computed from here before anything heavy is loaded.
"""

from __future__ import annotations

import logging
import lzma
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

from sstune.datasets.contents import Scan, is_image, refuse_oversized, scan, walk
from sstune.runs import Earlier
from sstune.schema import (
    DatasetConfig,
    DownloadedFolderConfig,
    FolderConfig,
    MnistConfig,
    RequestError,
    shown,
)
from sstune.storage import file_digest

log = logging.getLogger(__name__)

_MAX_PADDING = 64 * 2**20  # bytes of zeros behind an archive's end; tar fills up a record, mostly of 10 KiB


def fingerprint(config: DatasetConfig) -> str | None:
    """Content digest of the data a configuration names; part of a run's identity.

    Returns:
        A folder dataset: sha256 (hex) of the archive, or of names and contents of a directory's images. A
        dataset that torchvision can download, from an image tree of one's own: that tree's. Other datasets:
        None.

    Raises:
        RequestError: the root cannot be read.
    """
    root = _own_images(config)
    return None if root is None else digest(root, _kept_in(config))


def earlier_fingerprint(config: DatasetConfig) -> Earlier | None:
    """By what earlier versions knew a directory: names and sizes. None for what is no directory of images.

    Raises:
        RequestError: the root cannot be read.
    """
    root = _own_images(config)
    if root is None or not root.is_dir():
        return None
    found = scanned(root, _kept_in(config))
    return Earlier(found.names_and_sizes, found.changed)


def _own_images(config: DatasetConfig) -> Path | None:
    """The tree or archive of images that is known by its content only."""
    if not isinstance(config, FolderConfig | MnistConfig):
        return None
    root = Path(config.root).expanduser()
    downloaded = isinstance(config, DownloadedFolderConfig | MnistConfig)
    official = downloaded and (config.name == "flowers102" or not is_tree(root))  # flowers are no tree
    return None if official else root


def _kept_in(config: DatasetConfig) -> str:
    assert isinstance(config, FolderConfig | MnistConfig)
    return config.cache


def is_tree(root: Path) -> bool:
    """Whether ``root`` is an archive, or a directory with a train split."""
    return root.is_file() or (root / "train").is_dir()


def digest(root: Path, kept_in: str) -> str:
    """sha256 (hex) of an archive, or of names and contents of a directory's images.

    An archive is hashed once per process and (path, size, time of modification); of a directory see
    :func:`sstune.datasets.contents.scan`.

    Raises:
        RequestError: the root cannot be read.
    """
    if root.is_dir():
        return scanned(root, kept_in).content
    try:
        return file_digest(root)
    except OSError as error:
        raise _unreadable(root, error) from error


def scanned(root: Path, kept_in: str) -> Scan:
    """:func:`scan` of a directory.

    Raises:
        RequestError: it cannot be read; see also there.
    """
    try:
        return scan(root.resolve(), kept_in)
    except OSError as error:
        raise _unreadable(root, error) from error


def _unreadable(root: Path, error: OSError) -> RequestError:
    where = Path(shown(error.filename)).name if isinstance(error.filename, str) else ""
    inside = f"{where} in " if where and where != root.name else ""
    return RequestError(f"dataset.root: cannot read {inside}{root}: {error.strerror or error}")


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
        for name in sorted(name for name, _ in walk(root) if wanted(name)):
            yield name, (root / name).read_bytes()
    except OSError as error:
        raise _unreadable(root, error) from error


def _read_archive(root: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    links = 0
    try:
        with tarfile.open(root, "r:*") as archive:
            for member in archive:
                name = PurePosixPath(member.name.lstrip("/")).as_posix()
                if member.isdir() or not (is_image(name) and wanted(name)):
                    continue
                file = archive.extractfile(member) if member.isreg() else None
                if file is None:
                    links += 1
                    continue
                refuse_oversized(root, name, member.size)
                yield name, file.read()
                archive.members.clear()  # type: ignore[attr-defined]  # else it keeps every header
            _refuse_early_end(archive)
        _refuse_trailing(root)
    except RequestError:
        raise
    except Exception as error:  # tarfile, zlib and lzma have their own each, and lzma may not be installed
        reason = "no compression that is known" if "not be opened" in str(error) else shown(str(error))
        raise RequestError(f"dataset.root: {root} is damaged or no tar archive: {reason}") from error
    if links:
        log.warning("%s: skipped %d links and special files that are named like images", root, links)


def _refuse_early_end(archive: tarfile.TarFile) -> None:
    """An archive ends with two blocks of zeros, and with zeros behind them; tarfile itself takes a damaged
    header, or the file's end wherever it is, for the archive's. Read to the end, for a compressed file says
    only there whether it is whole."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    end = archive.fileobj.read(2 * tarfile.BLOCKSIZE)
    if end.strip(b"\0"):
        raise tarfile.ReadError(f"bad header at byte {archive.offset}")
    if len(end) < 2 * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it ends early, without tar's two blocks of zeros")
    for start in range(0, _MAX_PADDING, 2**20):
        rest = archive.fileobj.read(2**20)
        if rest.strip(b"\0"):
            raise tarfile.ReadError(f"there is something behind its end at byte {archive.offset + start}")
        if not rest:
            return
    raise tarfile.ReadError(f"more than {_MAX_PADDING:,} zeros follow its end")


def _refuse_trailing(root: Path) -> None:
    """Python reads an .xz file to its end mark, and what follows it is nothing to it."""
    with root.open("rb") as file:
        if file.read(6) != b"\xfd7zXZ\0":
            return
        file.seek(-min(root.stat().st_size, 2**16), 2)
        if not file.read().rstrip(b"\0").endswith(b"YZ"):
            raise lzma.LZMAError("there is something behind the end of the compressed data")


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
