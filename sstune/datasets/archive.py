"""Image files in a directory tree or a tar archive: digests, contents, splits and classes.

Imports no torch, because a run's identity is computed from here before torch is loaded.
"""

from __future__ import annotations

import hashlib
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
    ListConfig,
    MnistConfig,
    RequestError,
    shown,
)
from sstune.storage import file_digest

log = logging.getLogger(__name__)

_MAX_PADDING = (
    64 * 2**20
)  # bytes of zeros after an archive's end; tar pads to whole records, usually of 10 KiB


def fingerprint(config: DatasetConfig) -> str | None:
    """Content digest of a dataset in files of the user's own; part of a run's identity.

    Returns:
        For an archive its sha256 (hex), for a directory that of its images' names and contents, with the list
        files if there are any. None for datasets that torchvision downloads.

    Raises:
        RequestError: the root cannot be read.
    """
    if isinstance(config, ListConfig):
        return _list_digest(config)
    root = _own_images(config)
    return None if root is None else digest(root, _kept_in(config))


def list_files(config: ListConfig) -> dict[str, Path]:
    """The list files of a dataset by what they list: database, train, test, and val and classes if given."""
    root = Path(config.root).expanduser()
    names = {
        "database": config.database_file,
        "train": config.train_file,
        "test": config.test_file,
        "val": config.val_file,
        "classes": config.classes_file,
    }
    return {what: root / name for what, name in names.items() if name is not None}


def _list_digest(config: ListConfig) -> str:
    """sha256 (hex) of the images below the root, and of the list files by what they list."""
    found = hashlib.sha256(digest(Path(config.root).expanduser(), config.cache).encode())
    for what, file in list_files(config).items():
        try:
            found.update(f"\0{what}\0{file_digest(file)}".encode())
        except OSError as error:
            where = f"dataset.{what}_file: cannot read {file}"
            raise RequestError(f"{where}: {error.strerror or error}") from error
    return found.hexdigest()


def earlier_fingerprint(config: DatasetConfig) -> Earlier | None:
    """The fingerprint of earlier versions, of names and sizes; None if the data are not a directory.

    Raises:
        RequestError: the root cannot be read.
    """
    root = _own_images(config)
    if root is None or not root.is_dir():
        return None
    found = scanned(root, _kept_in(config))
    return Earlier(found.names_and_sizes, found.changed)


def _own_images(config: DatasetConfig) -> Path | None:
    """The image tree or archive of the user's own; None for a dataset that torchvision downloads."""
    if not isinstance(config, FolderConfig | MnistConfig):
        return None
    root = Path(config.root).expanduser()
    downloaded = isinstance(config, DownloadedFolderConfig | MnistConfig)
    official = downloaded and (
        config.name == "flowers102" or not is_tree(root)
    )  # Flowers-102 is never a tree
    return None if official else root


def _kept_in(config: DatasetConfig) -> str:
    assert isinstance(config, FolderConfig | MnistConfig)
    return config.cache


def is_tree(root: Path) -> bool:
    """Whether ``root`` is an archive, or a directory with a train split."""
    return root.is_file() or (root / "train").is_dir()


def digest(root: Path, kept_in: str) -> str:
    """sha256 (hex) of an archive, or of names and contents of a directory's images.

    An archive is hashed once per process and (path, size, time of modification). For a directory see
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
        RequestError: it cannot be read; see also :func:`scan`.
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
    """Yield every ``wanted`` image as (path relative to ``root``, its bytes), in the order of storage.

    An archive is streamed: nothing is unpacked to disk, and member names are never used as paths. Only
    regular files with an image suffix are read, without hidden ones (and macOS's ``__MACOSX``).

    Raises:
        RequestError: ``root`` is unreadable, damaged or not a tar archive, or a file is larger than
            ``MAX_FILE_BYTES``.
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
                archive.members.clear()  # type: ignore[attr-defined]  # otherwise tarfile keeps every header
            _refuse_early_end(archive)
        _refuse_trailing(root)
    except RequestError:
        raise
    except Exception as error:  # tarfile, zlib and lzma raise different types, and lzma may not be installed
        reason = "unknown compression" if "not be opened" in str(error) else shown(str(error))
        raise RequestError(f"dataset.root: {root} is damaged or not a tar archive: {reason}") from error
    if links:
        log.warning("%s: skipped %d links and special files with image suffixes", root, links)


def _refuse_early_end(archive: tarfile.TarFile) -> None:
    """Raise ReadError unless the archive ends with two blocks of zeros, followed by zeros only.

    tarfile accepts a damaged header or an early end of file as the archive's end. The file is read to its
    end, where a compressed file has its checksum.
    """
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    end = archive.fileobj.read(2 * tarfile.BLOCKSIZE)
    if end.strip(b"\0"):
        raise tarfile.ReadError(f"bad header at byte {archive.offset}")
    if len(end) < 2 * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it is truncated: tar's two closing blocks of zeros are missing")
    for start in range(0, _MAX_PADDING, 2**20):
        rest = archive.fileobj.read(2**20)
        if rest.strip(b"\0"):
            raise tarfile.ReadError(f"data behind its end at byte {archive.offset + start}")
        if not rest:
            return
    raise tarfile.ReadError(f"more than {_MAX_PADDING:,} zeros follow its end")


def _refuse_trailing(root: Path) -> None:
    """Raise LZMAError if data follow the end mark of an .xz file, which Python ignores."""
    with root.open("rb") as file:
        if file.read(6) != b"\xfd7zXZ\0":
            return
        file.seek(-min(root.stat().st_size, 2**16), 2)
        if not file.read().rstrip(b"\0").endswith(b"YZ"):
            raise lzma.LZMAError("data behind the end of the compressed data")


def has_split_and_class(name: str) -> bool:
    """Whether a path has at least the three levels of ``<split>/<class>/<image>``."""
    return name.count("/") >= 2


def tree_layout(names: Iterable[str]) -> dict[str, str]:
    """Map each path to its ``<split>/<class>/<image>``; paths with fewer levels are omitted.

    The split folders are at the top, or all in one enclosing folder, which is removed.
    """
    deep = [name for name in names if has_split_and_class(name)]
    tops = {name.split("/", 1)[0] for name in deep}
    wrapped = len(tops) == 1 and any(name.count("/") >= 3 for name in deep)
    layout = {name: name.split("/", 1)[1] if wrapped else name for name in deep}
    return {name: path for name, path in layout.items() if has_split_and_class(path)}
