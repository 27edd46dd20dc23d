"""Decoded images on disk: one uncompressed .npz per archive and image size, written atomically.

The zip container's checksums are what detects a damaged file; a cache that cannot be used is never an error.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

log = logging.getLogger(__name__)

_FORMAT = 1  # raise when decoding or the file's layout changes: older files are then no longer found


@dataclass(frozen=True, eq=False)
class Decoded:
    """Every image of a dataset: uint8 [N, C, H, W], and its ``<split>/<class>/<image>``, in sorted order."""

    images: npt.NDArray[np.uint8]
    paths: list[str]

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or len(self.images) != len(self.paths):
            found = f"{self.images.dtype} {self.images.shape}"
            raise ValueError(f"expected uint8 [{len(self.paths)}, C, H, W], got {found}")


def cache_file(directory: str, digest: str, image_size: int | None) -> Path:
    """Where the images of the data with this content digest, resized to ``image_size``, are kept."""
    key = hashlib.sha256(f"{_FORMAT}:{digest}:{image_size}".encode()).hexdigest()
    return Path(os.path.expanduser(directory)) / f"images-{key[:32]}.npz"


def load(path: Path) -> Decoded | None:
    """The images in ``path``; None when there is no such file or, with a warning, when it is damaged."""
    try:
        with np.load(path) as stored:
            return Decoded(stored["images"], os.fsdecode(stored["paths"].tobytes()).split("\0"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # a damaged zip raises nearly anything; the answer is the same
        log.warning("cache %s cannot be used (%s): decoding again", path, error)
        return None


def save(path: Path, decoded: Decoded) -> None:
    """Write ``path`` whole or not at all; a full disk or an unwritable directory only warns."""
    names = np.frombuffer(os.fsencode("\0".join(decoded.paths)), dtype=np.uint8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".partial")
        try:
            with os.fdopen(descriptor, "wb") as file:
                np.savez(file, images=decoded.images, paths=names)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            os.unlink(partial)
            raise
    except OSError as error:
        log.warning("cannot cache decoded images in %s (%s): the next run decodes again", path.parent, error)
