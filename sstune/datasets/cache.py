"""The cache of datasets on disk: decoded images, lists of corrupt files, digests of files.

Decoded images are in one uncompressed .npz per archive and image size, whose checksums detect damage. Files
are written atomically. An unusable cache is never an error.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from sstune.storage import write_file

log = logging.getLogger(__name__)

_FORMAT = 2  # increase when decoding or the file format changes, so that older files are not found


@dataclass(frozen=True, eq=False)
class Decoded:
    """The images of a dataset, uint8 [N, C, H, W], and their ``<split>/<class>/<image>``, in sorted order.

    ``corrupt``: path -> error of the images that cannot be decoded.
    """

    images: npt.NDArray[np.uint8]
    paths: list[str]
    corrupt: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or len(self.images) != len(self.paths):
            found = f"{self.images.dtype} {self.images.shape}"
            raise ValueError(f"expected uint8 [{len(self.paths)}, C, H, W], got {found}")


def cache_file(directory: str, kind: str, digest: str, *details: object) -> Path:
    """The path of a cache file for the data with this content digest.

    Args:
        kind: ``images`` (decoded, .npz), ``corrupt`` (a list, .json) or ``contents`` (digests, .npz).
        details: what else the content depends on, such as the size of resized images.
    """
    key = hashlib.sha256(":".join(map(str, (_FORMAT, digest, *details))).encode()).hexdigest()
    suffix = {"images": ".npz", "corrupt": ".json", "contents": ".npz"}[kind]
    return Path(os.path.expanduser(directory)) / f"{kind}-{key[:32]}{suffix}"


def load(path: Path) -> Decoded | None:
    """The images in ``path``; None if it does not exist or, with a warning, if it is damaged."""
    try:
        with np.load(path) as stored:
            corrupt = json.loads(stored["corrupt"].tobytes()) if "corrupt" in stored else {}
            return Decoded(stored["images"], os.fsdecode(stored["paths"].tobytes()).split("\0"), corrupt)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # a damaged zip raises errors of many types
        log.warning("cache %s cannot be used (%s): decoding again", path, error)
        return None


def save(path: Path, decoded: Decoded) -> None:
    """Write ``path`` atomically; a full disk or an unwritable directory is only a warning."""
    names = np.frombuffer(os.fsencode("\0".join(decoded.paths)), dtype=np.uint8)
    arrays = {"images": decoded.images, "paths": names}
    if decoded.corrupt:
        arrays["corrupt"] = np.frombuffer(json.dumps(decoded.corrupt).encode(), dtype=np.uint8)
    _write(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def load_corrupt(path: Path) -> dict[str, str] | None:
    """Name -> error of the files that ``path`` lists; None if it does not exist or is damaged."""
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): str(error) for name, error in listed.items()}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, AttributeError) as error:
        log.warning("cache %s cannot be used (%s): reading every image again", path, error)
        return None


def save_corrupt(path: Path, corrupt: dict[str, str]) -> None:
    """Write ``path`` atomically; a full disk or an unwritable directory is only a warning."""
    _write(path, lambda file: file.write(json.dumps(corrupt, indent=1).encode()))


Contents = tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.uint8]]
"""Names [N] of files, their stamps [N, 3] and the sha256 of each [N, 32]; see datasets/contents.py."""


def load_contents(path: Path) -> Contents | None:
    """The contents in ``path``; None if it does not exist or, with a warning, if it is damaged."""
    try:
        with np.load(path) as stored:
            names = os.fsdecode(stored["names"].tobytes()).split("\0")
            stamps, digests = stored["stamps"], stored["digests"]
        if stamps.shape != (len(names), 3) or digests.shape != (len(names), 32):
            raise ValueError(f"{len(names)} names, stamps {stamps.shape}, digests {digests.shape}")
        return names, stamps, digests
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:
        log.warning("cache %s cannot be used (%s): hashing again", path, error)
        return None


def save_contents(
    path: Path, names: list[str], stamps: npt.NDArray[np.int64], digests: npt.NDArray[np.uint8]
) -> None:
    """Write ``path`` atomically; a full disk or an unwritable directory is only a warning."""
    encoded = np.frombuffer(os.fsencode("\0".join(names)), dtype=np.uint8)
    _write(path, lambda file: np.savez(file, names=encoded, stamps=stamps, digests=digests))


@contextmanager
def exclusive(name: str) -> Iterator[None]:
    """Hold an exclusive lock called ``name`` among this user's processes on this machine."""
    key = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    with (Path(tempfile.gettempdir()) / f"sstune-{os.getuid()}-{key}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(path: Path, content: Callable[[BinaryIO], object]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, content)
    except OSError as error:
        log.warning("cannot write to the cache %s (%s): the next run decodes again", path.parent, error)
