"""Published files that torchvision downloads, verifies and unpacks, brought into a root or not at all."""

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
    """A file of a package is not what was published; ``args``: its name, and what is wrong with it."""


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
            RequestError: that is not possible; says which files to put where, or which one is damaged.
        """
        found = self._open(root)
        if isinstance(found, Exception):
            with cache.alone(f"{self.name}-{root.resolve()}"):  # no other process of this user installs it
                found = self._open(root)
                if isinstance(found, Exception):  # and no other process has downloaded it
                    self._install(root, download, found)
            found = self._open(root)
        if isinstance(found, Exception):
            raise RequestError(f"dataset.root: the {self.name} files in {root} changed while they were read")
        return found

    def _open(self, root: Path) -> Any:
        """torchvision's error where files are absent, or are not what was published."""
        try:
            return self.open(root, False)
        except Exception as error:  # what its readers raise on damaged files is of any kind
            return error

    def _install(self, root: Path, download: bool, fault: Exception) -> None:
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
        self._refuse_damaged(root, at_hand, fault, reason)
        files = ", ".join(f"{file.name} (from {file.url}, md5 {file.md5})" for file in self.files)
        raise RequestError(
            f"dataset.root: {self.name} is not in {root} and was not downloaded ({reason});"
            f" put {files} into {root / self.where}"
        )

    def _refuse_damaged(self, root: Path, at_hand: list[Published], fault: Exception, reason: str) -> None:
        """Raise RequestError if files are there and are not what was published."""
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
    """Compare files (name, md5) with what was published.

    Raises:
        Damaged: one of them is absent or another, although the folder is there.
    """
    from torchvision.datasets.utils import check_integrity

    for name, md5 in files if folder.is_dir() else ():
        if not check_integrity(folder / name, md5):
            raise Damaged(name, f"its md5 is not {md5}" if (folder / name).exists() else "it is absent")


def _bring(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where the file system has no such thing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
