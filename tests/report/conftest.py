"""Rows as runs write them, with only what a test wants to vary."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from matplotlib.figure import Figure

from sstune.packing import pack
from sstune.report import effort, figures, transfer

Row = dict[str, Any]


def _config(rule: str, scale: str, seed: int, **changes: Any) -> dict[str, Any]:
    """Nested semantic config; ``changes`` use ``__`` for the dot."""
    config: dict[str, Any] = {
        "backbone": {"name": "resnet20"},
        "dataset": {"name": "folder", "label": "cifar10-jpeg", "val_fraction": 0.1},
        "task": {"name": "classification", "label_smoothing": 0.0},
        "rule": {"name": rule, "scale": scale, "include": ["*"], "exclude": []},
        "seed": seed,
    }
    if rule in ("bp", "sham"):
        del config["rule"]["scale"]
    for key, value in changes.items():
        node, *path = config, *key.split("__")
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = value
    return config


def _row(command: str, config: dict[str, Any], lineage: list[Any], measurements: list[Any]) -> Row:
    text = json.dumps([command, config, lineage], sort_keys=True)
    return {
        "schema_version": 1,
        "identity": hashlib.sha256(text.encode()).hexdigest(),
        "command": command,
        "config": config,
        "lineage": lineage,
        "n_classes": 10,
        "measurements": measurements,
        "seconds": 61.2,
        "device": "cpu",
        "precision": "float32",
    }


FILE = {"file": "resnet20-12fca82f.th", "sha256": "12fca82f" + "0" * 56}


def finetune(
    rule: str = "usf",
    seed: int = 0,
    *,
    correct: int = 9000,
    scale: str = "weight_rms",
    command: str = "finetune",
    lineage: list[Any] | None = None,
    **changes: Any,
) -> Row:
    recipe = {"optimizer": {"name": "sgd", "lr": 0.01}, "epochs": 3, "batch_size": 128}
    config = _config(rule, scale, seed, **recipe | changes)
    measured = [
        {"split": "val", "attack": None, "gradient": None, "eps": None, "n": 5000, "correct": 4999},
        {"split": "test", "attack": None, "gradient": None, "eps": None, "n": 10000, "correct": correct},
    ]
    return _row(command, config, [FILE] if lineage is None else lineage, measured)


def attack(
    parent: Row | None,
    name: str = "pgd",
    *,
    clean: int = 900,
    counts: dict[str, tuple[int, int]] | None = None,
    n: int = 1000,
    seed: int | None = None,
    rule: str | None = None,
    **changes: Any,
) -> Row:
    """``counts``: eps -> correct under the rule's gradient, correct under the exact one."""
    counts = {"8/255": (500, 100)} if counts is None else counts
    own = parent["config"] if parent else _config(rule or "bp", "weight_rms", 0)
    config = {key: json.loads(json.dumps(own[key])) for key in ("backbone", "dataset", "task", "rule")}
    config["seed"] = own["seed"] if seed is None else seed
    config["attack"] = {
        "name": name,
        "eps": list(counts),
        "gradient": ["rule", "exact"],
        "n": n,
        "batch_size": 256,
    }
    if name == "pgd":
        config["attack"] |= {"steps": 10, "step_size": "eps/4", "restarts": 1}
    config["attack"] |= changes
    if rule:
        config["rule"]["name"] = rule
    measured: list[Any] = [
        {"split": "test", "attack": None, "gradient": None, "eps": None, "n": n, "correct": clean}
    ]
    for eps, pair in counts.items():
        for gradient, correct in zip(("rule", "exact"), pair, strict=True):
            measured.append({"split": "test", "attack": name, "gradient": gradient, "eps": eps, "n": n,
                             "correct": correct, "seconds": 1.5})  # fmt: skip
    lineage: list[Any] = [FILE]
    if parent:
        lineage = [*parent["lineage"], {key: parent[key] for key in ("command", "identity", "config")}]
    return _row("attack", config, lineage, measured)


def remember(
    row: Row,
    kept: dict[str, str],
    found: dict[str, list[list[int]]] | None = None,
    samples: str = "a" * 64,
    **changes: Any,
) -> Row:
    """``row`` with the outcomes of each sample.

    ``kept``: "rule 8/255" (or "clean", or " 8/255" without a gradient) -> a character for each sample, "x"
    where it stayed right. ``found``: the same keys -> pairs of effort and samples.
    """
    row["datasets"] = {"test": {"n": 10000, "digest": "d" * 64, "attacked": samples}}
    for entry in row["measurements"]:
        key = f"{entry['gradient'] or ''} {entry['eps']}" if entry["attack"] else "clean"
        if key in kept:
            right = [character == "x" for character in kept[key]]
            entry |= {"n": len(right), "correct": sum(right), "outcomes": pack(right), **changes}
        entry |= {"found": (found or {}).get(key, [])}
    return row


@pytest.fixture(scope="session")
def make() -> Any:
    """``make.finetune(...)``, ``make.attack(parent, ...)`` and ``make.remember(row, kept)``."""

    class Make:
        finetune: Callable[..., Row] = staticmethod(finetune)
        attack: Callable[..., Row] = staticmethod(attack)
        remember: Callable[..., Row] = staticmethod(remember)

    return Make


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that the code under test makes."""
    found: list[Figure] = []

    class Recorded(Figure):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            found.append(self)

    for module in (figures, effort, transfer):
        monkeypatch.setattr(module, "Figure", Recorded)
    return found
