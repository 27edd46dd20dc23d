"""Published files that torchvision downloads, verifies and unpacks; a root gets all of them or none."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
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


class Damaged(Exception):
    """A file of a package differs from the published one; ``args``: its name, and the difference."""


@dataclass(frozen=True)
class Package:
    """A published dataset that torchvision unpacks and reads.

    Args:
        name: for messages.
        files: published files.
        where: folder in the root in which torchvision expects them, "" for the root itself.
        results: files and folders in the root after unpacking.
        open: torchvision's datasets, (root, download) -> one or several.
    """

    name: str
    files: tuple[Published, ...]
    where: str
    results: tuple[str, ...]
    open: Callable[[Path, bool], Any]

    def opened(self, root: Path, download: bool) -> Any:
        """torchvision's datasets in ``root``, downloaded and unpacked first if necessary.

        Raises:
            RequestError: this failed; the message says which files to put where, or which one is damaged.
        """
        found = self._open(root)
        if isinstance(found, Exception):
            with cache.exclusive(f"{self.name}-{root.resolve()}"):  # one process of this user at a time
                found = self._open(root)
                if isinstance(found, Exception):  # not downloaded by another process meanwhile
                    self._install(root, download, found)
            found = self._open(root)
        if isinstance(found, Exception):
            raise RequestError(f"dataset.root: the {self.name} files in {root} changed while they were read")
        return found

    def _open(self, root: Path) -> Any:
        """torchvision's datasets, or its error if files are absent or damaged."""
        try:
            return self.open(root, False)
        except Exception as error:  # its readers raise errors of many types on damaged files
            return error

    def _install(self, root: Path, download: bool, fault: Exception) -> None:
        """Unpack the files in ``root`` and download the others; ``root`` gets all results or none."""
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
                        if (root / result).exists():  # damaged or incomplete
                            (root / result).rename(Path(stage) / f"replaced-{result}")
                        (Path(stage) / result).rename(root / result)
                    return
            except (OSError, RuntimeError, HTTPException) as error:
                reason = " ".join(str(error).split())
        self._refuse_damaged(root, at_hand, fault, reason)
        files = ", ".join(f"{file.name} (from {file.url}, md5 {file.md5})" for file in self.files)
        raise RequestError(
            f"dataset.root: {self.name} is not in {root} and was not downloaded ({reason});"
            f" put {files} into {root / self.where}"
        )

    def _refuse_damaged(self, root: Path, at_hand: list[Published], fault: Exception, reason: str) -> None:
        """Raise RequestError if files are present but differ from the published ones."""
        unlike = [
            file for file in self.files if file not in at_hand and (root / self.where / file.name).exists()
        ]
        results = [result for result in self.results if (root / result).exists()]
        if unlike:
            name, why = unlike[0].name, f"its md5 is not {unlike[0].md5}"
        elif results and isinstance(fault, Damaged):
            name, why = fault.args
        elif results and not self.where:
            name, why = results[0], "or incomplete"
        else:
            return
        raise RequestError(
            f"dataset.root: {name} in {root} is damaged ({why}) and was not replaced ({reason[:60]})"
        )


def check_md5(folder: Path, files: Iterable[tuple[str, str]]) -> None:
    """Compare files (name, md5) in ``folder``, if it exists, with the published ones.

    Raises:
        Damaged: a file is absent or has another md5.
    """
    from torchvision.datasets.utils import check_integrity

    for name, md5 in files if folder.is_dir() else ():
        if not check_integrity(folder / name, md5):
            raise Damaged(name, f"its md5 is not {md5}" if (folder / name).exists() else "it is absent")


def _bring(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it where the file system has no hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
