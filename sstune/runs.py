"""Run identity, run directory, lock, done marker, result row. Imports no torch.

A run is its resolved configuration: the same configuration means the same directory, and a directory with
a ``result.json`` is done. That file is written last and atomically.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from sstune import __version__
from sstune.identity import SCHEMA_VERSION, identity, plain, semantic
from sstune.schema import RequestError, RunConfig


class Locked(Exception):
    """Another process works on this run."""


def file_digest(path: Path) -> str:
    """sha256 of a file's content; taken once per process and (path, size, time of modification)."""
    status = path.stat()
    return _file_digest(path.resolve(), status.st_size, status.st_mtime_ns)


@cache
def _file_digest(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success its content replaces ``path``, synced to disk.

    A crash or a full disk leaves the old file as it was.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, keys sorted.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not know.
    """
    write_text(path, json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n")


def name_of(ancestor: dict[str, Any]) -> str | None:
    """An entry of a lineage as identities hold it: the run's own identity, or the file's sha256."""
    return ancestor.get("identity") or ancestor.get("sha256")


class Run:
    """A run's directory ``<out>/<command>/<label>-<identity>`` and what lies in it."""

    def __init__(
        self,
        config: RunConfig,
        lineage: list[dict[str, Any]],
        data: str | None,
        surrogates: Sequence[str] = (),
    ) -> None:
        parent = lineage[-1] if lineage else {}
        self.config = config
        self.lineage = lineage
        self.identity = identity(config, name_of(parent), data, surrogates)
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
        self.directory = Path(config.out) / config.command / f"{label}-{self.identity[:12]}"

    def result(self) -> dict[str, Any] | None:
        """The row of the finished run, or None."""
        return read_result(self.directory)

    @contextmanager
    def lock(self, wait: bool = False) -> Iterator[None]:
        """Work on this run alone; with ``wait``, once another process has ended its work on it.

        The lock is the kernel's (flock), so it ends with its process, however that ends.

        Raises:
            Locked: another process holds it; the message says which.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                reason = f"{self.directory} is being run by {file.read().strip()}"
                if not wait:
                    raise Locked(reason) from None
                print(f"{reason}: waiting for it", flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            try:
                yield
            finally:
                file.truncate(0)

    def begin(self) -> None:
        """Write down what is asked for; with ``force``, put an earlier result and its state aside."""
        if self.config.force:
            for name in ("result.json", "checkpoint.pt", "outcomes.npz"):
                path = self.directory / name
                if path.exists():
                    os.replace(path, path.with_name(f"previous.{name}"))
        for leftover in self.directory.glob(".*.*"):  # of a write that a kill cut short
            leftover.unlink()
        config = plain(asdict(self.config), names=True)  # as on a command line
        if config["init_from"] is not None:
            config["init_from"] = str(Path(config["init_from"]).expanduser().resolve())
        write_text(self.directory / "config.yaml", yaml.safe_dump(config, sort_keys=False))
        (self.directory / "failure.json").unlink(missing_ok=True)
        _git()  # now: by the end the checkout may have moved on

    def finish(self, **measured: Any) -> dict[str, Any]:
        """Write the row, which marks the run as done, and return it."""
        row = {
            "schema_version": SCHEMA_VERSION,
            "identity": self.identity,
            "command": self.config.command,
            "config": semantic(self.config),
            "lineage": self.lineage,
            **provenance(),
            **measured,
        }
        write_json(self.directory / "result.json", row)
        (self.directory / "checkpoint.pt").unlink(missing_ok=True)
        return row


def read_result(directory: Path) -> dict[str, Any] | None:
    """The row in a run directory, or None where the run is not finished.

    Raises:
        RequestError: the file is there and is not a row.
    """
    path = directory / "result.json"
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RequestError(f"{path}: not JSON ({error})") from error
    if not isinstance(row, dict) or row.get("schema_version") != SCHEMA_VERSION:
        raise RequestError(f"{path}: not a row of schema version {SCHEMA_VERSION}")
    return row


def provenance() -> dict[str, Any]:
    """Which code a figure comes from: ``versions`` of packages, ``git`` commit and whether it was dirty."""
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
def _git() -> dict[str, Any]:
    """Commit of the checkout this package runs from; None for an installed wheel."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    if git("ls-files", "--error-unmatch", "runs.py") is None:
        return {"commit": None, "dirty": None}
    changed = git("status", "--porcelain", "--", ":(top)", ":(top,exclude)results")  # tables decide nothing
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
