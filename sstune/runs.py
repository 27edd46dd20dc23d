"""Run identity, run directory, lock, done marker, result row. Imports no torch.

A run is its resolved configuration: the same configuration means the same directory, and a directory with
a ``result.json`` is done. That file is written last and atomically.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack, cast

import yaml

from sstune import __version__
from sstune.identity import SCHEMA_VERSION, identity, plain, semantic
from sstune.locking import locked
from sstune.row import Ancestor, ConfigEntry, GitEntry, Measured, Row
from sstune.schema import RequestError, RunConfig
from sstune.storage import BEGAN, explained, in_short, set_aside, write_json, write_text

RESULT, CONFIG, RECORD = "result.json", "config.yaml", "data.json"
SPLIT = "split.npz"  # positions of the images of each split, for retrieval
STATE = ("checkpoint.pt", "outcomes.npz", "cell.npz")  # which a run resumes from
# all files that a run writes
_WRITTEN = (
    *STATE, RESULT, CONFIG, RECORD, SPLIT, "history.csv", "alignment.csv", "model.pt", "codes.npz",
    "images.npz", "images.png", "failure.json", "audit.html",
)  # fmt: skip
# Keys that a row needs for another run to start from it.
_NEEDED = {"command": str, "identity": str, "config": dict, "lineage": list}
REPAIR_HINT = "delete or rename it, and repeat that run"


def ancestor_id(ancestor: Ancestor) -> str | None:
    """An entry of a lineage as identities hold it: the run's own identity, or the file's sha256."""
    return ancestor.get("identity") or ancestor.get("sha256")


class Earlier(NamedTuple):
    """A fingerprint as earlier versions took it, and when the data was last changed (s since the epoch)."""

    fingerprint: str
    changed: float


class Run:
    """A run's directory ``<out>/<command>/<label>-<identity>`` and what lies in it."""

    def __init__(
        self,
        config: RunConfig,
        lineage: list[Ancestor],
        data: str | None,
        surrogates: Sequence[str] = (),
        earlier: Earlier | None = None,
    ) -> None:
        """A run started under an ``earlier`` fingerprint, after the data was last changed, keeps its identity
        and directory."""
        self.config = config
        self.lineage = lineage
        self.identity, self.directory = self._name(data, surrogates)
        if earlier is not None and not self.directory.exists():
            name, directory = self._name(earlier.fingerprint, surrogates)
            begun = directory / "config.yaml"
            if begun.exists() and begun.stat().st_mtime >= earlier.changed:
                self.identity, self.directory = name, directory

    def _name(self, data: str | None, surrogates: Sequence[str]) -> tuple[str, Path]:
        config = self.config
        parent = ancestor_id(self.lineage[-1]) if self.lineage else None
        found = identity(config, parent, data, surrogates)
        rule = semantic(config)["rule"]
        parts = [
            config.backbone.name,
            config.dataset.label,
            rule["name"],
            rule.get("scale"),
            f"s{config.seed}",
        ]
        if config.command == "attack":
            parts.insert(0, config.attack.name)
        label = "-".join(part for part in parts if part)
        return found, Path(config.out).expanduser() / config.command / f"{label}-{found[:12]}"

    def result(self) -> Row | None:
        """The row of the finished run, or None."""
        return read_result(self.directory)

    def answer(self) -> Row | None:
        """The row, if the run is done and need not be repeated; otherwise None.

        With ``force``, a row counts only if a command with ``force`` wrote it after the present command
        started: concurrent commands share their results, a later command repeats the run.
        """
        if self.config.force and not self._made_since(float(os.environ.get(BEGAN, time.time()))):
            return None
        return self.result()

    def _made_since(self, began: float) -> bool:
        with suppress(OSError):
            return (self.directory / RESULT).stat().st_mtime >= began and self._forced()
        return False

    def _forced(self) -> bool:
        """Whether the last command that worked on this run had ``force``."""
        with suppress(OSError, ValueError, yaml.YAMLError):
            asked = yaml.safe_load((self.directory / CONFIG).read_text(encoding="utf-8"))
            return isinstance(asked, dict) and asked.get("force") is True
        return False

    def lock(self, wait: bool = False) -> AbstractContextManager[None]:
        """Lock this run (:func:`sstune.locking.locked`); a run that fails at once leaves no directory.

        Raises:
            Locked: another process holds the lock; the message names it.
        """
        return locked(self.directory, wait, worthless=[CONFIG, RECORD])

    def begin(self) -> None:
        """Write ``config.yaml``; with ``force``, rename an earlier result and its state to ``previous.*``.

        An interrupted command with ``force`` leaves a state without a result, from which the run resumes.
        """
        with explained("preparing", self.directory):
            for leftover in self.directory.glob(".*.*"):  # temporary files of a killed process
                leftover.unlink()
            for path in (self.directory / name for name in _WRITTEN):
                if os.path.lexists(path) and not path.is_file():
                    set_aside(path, "not a file")
            if self.config.force and ((self.directory / RESULT).exists() or not self._forced()):
                self._put_aside()
            (self.directory / "failure.json").unlink(missing_ok=True)
        config = plain(asdict(self.config), names=True)  # as on a command line
        if config["init_from"] is not None:
            config["init_from"] = str(Path(config["init_from"]).expanduser().resolve())
        write_text(self.directory / CONFIG, yaml.safe_dump(config, sort_keys=False))
        _git()  # cached now: the checkout may change during the run

    def _put_aside(self) -> None:
        for name in (*STATE, RESULT):  # the result last: after a kill, this is repeated
            path = self.directory / name
            if path.exists():
                os.replace(path, path.with_name(f"previous.{name}"))

    def finish(self, **measured: Unpack[Measured]) -> Row:
        """Write the row, which marks the run as done, and return it as :func:`read_result` will."""
        row: Row = {
            "schema_version": SCHEMA_VERSION,
            "identity": self.identity,
            "command": self.config.command,
            "config": cast(ConfigEntry, semantic(self.config)),
            "lineage": self.lineage,
            **provenance(),
            **measured,
        }
        write_json(self.directory / RESULT, row)
        for name in ("checkpoint.pt", RECORD):  # no longer needed: the row holds their content
            with suppress(OSError):
                (self.directory / name).unlink(missing_ok=True)
        written: Row = json.loads(json.dumps(row, sort_keys=True))
        return written


def read_result(directory: Path) -> Row | None:
    """The row in a run directory, or None where the run is not finished.

    Raises:
        RequestError: the file is not a row of this version.
    """
    path = directory / RESULT
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror}); {REPAIR_HINT}") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path}: not JSON ({in_short(error)}); {REPAIR_HINT}") from error
    if problem := _problem(found):
        raise RequestError(f"{path}: {problem}; {REPAIR_HINT}")
    row: Row = found
    return row


def _problem(found: Any) -> str | None:
    """Why ``found`` is not a row that another run can start from, or None."""
    if not isinstance(found, dict) or found.get("schema_version") != SCHEMA_VERSION:
        return f"not a row of schema version {SCHEMA_VERSION}"
    return next(
        (f"has no {key}" for key, kind in _NEEDED.items() if not isinstance(found.get(key), kind)), None
    )


class Provenance(TypedDict):
    """Which code a figure comes from."""

    versions: dict[str, str]
    git: GitEntry


def provenance() -> Provenance:
    """Versions of the packages, and the git commit of this package."""
    return {"versions": _versions(), "git": _git()}


_RECORDED = ("torch", "torchvision", "timm", "torchattacks", "pyautoattack", "hydra-core", "numpy")


@cache
def _versions() -> dict[str, str]:
    versions = {"sstune": __version__, "python": platform.python_version()}
    for name in _RECORDED:
        with suppress(importlib.metadata.PackageNotFoundError):  # an extra
            versions[name] = importlib.metadata.version(name)
    return versions


@cache
def _git() -> GitEntry:
    """Commit of the checkout this package runs from; None for an installed wheel."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    if git("ls-files", "--error-unmatch", "runs.py") is None:
        return {"commit": None, "dirty": None}
    changed = git(
        "status", "--porcelain", "--", ":(top)", ":(top,exclude)results"
    )  # result tables do not affect a run
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
