"""Published files that torchvision downloads, verifies and unpacks, brought into a root or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

from sstune.datasets import cache
from sstune.schema import RequestError


class Published(NamedTuple):
    """A file to download, and its md5 (hex)."""

    name: str
    url: str
    md5: str


@dataclass(frozen=True)
class Package:
    """What torchvision makes of some published files.

    Args:
        name: what to call it.
        files: published files.
        where: folder below the root in which torchvision looks for them, "" for the root itself.
        results: what then lies in the root.
        open: torchvision's data sets in a root, (root, download) -> one or several.
    """

    name: str
    files: tuple[Published, ...]
    where: str
    results: tuple[str, ...]
    open: Callable[[Path, bool], Any]

    def opened(self, root: Path, download: bool) -> Any:
        """torchvision's data sets in ``root``, installed first if need be.

        Raises:
            RequestError: that is not possible; says which files to put where.
        """
        found = self._open(root)
        if found is None:
            with cache.alone(f"{self.name}-{root.resolve()}"):  # no other process of this user installs it
                if self._open(root) is None:  # nobody else has brought it meanwhile
                    self._install(root, download)
            found = self._open(root)
        if found is None:
            raise RequestError(f"dataset.root: the {self.name} files in {root} changed while they were read")
        return found

    def _open(self, root: Path) -> Any:
        """None where files are absent or differ from their md5."""
        try:
            return self.open(root, False)
        except (OSError, RuntimeError):
            return None

    def _install(self, root: Path, download: bool) -> None:
        """Unpack what lies in ``root``, downloading the rest; ``root`` gets all of it or nothing."""
        from torchvision.datasets.utils import check_integrity

        at_hand = [file for file in self.files if check_integrity(root / self.where / file.name, file.md5)]
        reason = "dataset.download=false"
        if download or len(at_hand) == len(self.files):
            existing = next(folder for folder in (root, *root.parents) if folder.exists())
            try:
                with tempfile.TemporaryDirectory(dir=existing, prefix=f".{self.name}-") as stage:
                    for file in at_hand:
                        _bring(root / self.where / file.name, Path(stage) / self.where / file.name)
                    self.open(Path(stage), True)
                    root.mkdir(parents=True, exist_ok=True)
                    for result in self.results:
                        if (root / result).exists():  # damaged or unfinished, and in the way
                            (root / result).rename(Path(stage) / f"replaced-{result}")
                        (Path(stage) / result).rename(root / result)
                    return
            except (OSError, RuntimeError, HTTPException) as error:
                reason = " ".join(str(error).split())
        files = ", ".join(f"{file.name} (from {file.url}, md5 {file.md5})" for file in self.files)
        raise RequestError(
            f"dataset.root: {self.name} is not in {root} and was not downloaded ({reason});"
            f" put {files} into {root / self.where}"
        )


def _bring(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where the file system has no such thing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
