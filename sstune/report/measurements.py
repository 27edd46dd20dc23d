"""What was measured, once each, as one frame, and the order in which readers expect it."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from sstune.report.rows import Row, eps_value, norm_of, unique
from sstune.report.variants import (
    LABELS,
    attack_settings,
    joined,
    labels_of,
    model_settings,
    name_variants,
    without_seeds,
)
from sstune.schema import ATTACK_TRAITS, Norm, RequestError

LINE = [*LABELS, "variant"]
CELL = ["attack", "eps", "gradient", "source"]
RESULT = ["n", "correct", "accuracy", "seconds", "identity"]
TIDY = [*LABELS, "seed", "variant", "attack", "gradient", "source", "eps", "eps_value", *RESULT]

RULES = (
    "bp", "sham", "usf", "frsf", "brsf", "fa", "fa_signed", "dfa", "kp", "wm", "pfa", "pfa_o",
)  # fmt: skip
GRADIENTS = ("rule", "exact", "surrogate")


def measurements(rows: Iterable[Row]) -> pd.DataFrame:
    """One line per test measurement of one seed, columns :data:`TIDY`; accuracy in [0, 1].

    A measurement that several rows repeat (the clean accuracy of a net, in each attack on it) stands once.
    What does not apply (the scale of bp, the eps of clean accuracy) is an empty text. ``source`` names the
    network whose gradient a transferred attack took; an attack in the L2 ball is called so ("pgd L2"), and
    the worst case over all that an audit tried is its attack "audit".

    Raises:
        RequestError: rows disagree about one measurement, or none measured the test split.
    """
    return frame(rows)[TIDY]


def frame(rows: Iterable[Row]) -> pd.DataFrame:
    """:func:`measurements`, the halves of ``variant``, and what there is for each sample; sorted.

    ``outcomes`` and ``found`` are those of the measurement (empty in rows from before there were any),
    ``samples`` the digest of the attacked ones, ``n_clean`` how many of these were right before the attack.
    ``network`` and ``manner`` say, seeds included, what was attacked and how.
    """
    records: dict[Hashable, dict[str, Any]] = {}
    for record in (record for row in unique(rows) for record in _records(row)):
        replicate = tuple(record[key] for key in ("network", "manner", *CELL, "n"))
        other = records.setdefault(replicate, record)
        if other["correct"] != record["correct"]:
            raise RequestError(
                f"runs {other['identity'][:12]} and {record['identity'][:12]} disagree: {record['attack']} "
                f"{record['eps']} {other['correct']} and {record['correct']} correct of {record['n']}"
            )
        if record["outcomes"] and not other["outcomes"]:
            records[replicate] = record
    if not records:
        raise RequestError("no row holds a measurement on the test split")
    found = list(records.values())
    name_variants(found)
    found.sort(key=_order)
    return pd.DataFrame(found)


def _records(row: Row) -> Iterable[dict[str, Any]]:
    model, settings = model_settings(row), attack_settings(row)
    config, labels = row["config"], labels_of(row)
    norm = "" if norm_of(row) is Norm.Linf else str(norm_of(row))
    tested = [found for found in row["measurements"] if found["split"] == "test"]
    n_clean = {found["n"]: found["correct"] for found in tested if found["attack"] is None}
    for found in tested:
        clean = found["attack"] is None
        # clean accuracy depends neither on the attack nor on the attack's seed
        chosen = {} if clean else settings | {"seed": str(config["seed"])}
        cell = {
            "attack": "clean" if clean else joined(found["attack"], norm),
            "gradient": found["gradient"] or "",
            "source": found.get("source") or "",
            "eps": found["eps"] or "",
        }
        yield {
            **labels,
            **cell,
            "seed": int(model.get("seed", config["seed"])) if clean else config["seed"],
            "eps_value": math.nan if clean else eps_value(row, found["eps"]),
            "n": found["n"],
            "correct": found["correct"],
            "accuracy": found["correct"] / found["n"],
            "seconds": found.get("seconds", math.nan),
            "identity": row["identity"],
            "outcomes": found.get("outcomes") or "",
            "found": found.get("found") or [],
            "samples": row.get("datasets", {}).get("test", {}).get("attacked", ""),
            "n_clean": n_clean.get(found["n"], math.nan),
            "model": without_seeds(model),
            "settings": without_seeds(chosen),
            "network": json.dumps([labels, model], sort_keys=True),
            "manner": json.dumps(chosen, sort_keys=True),
        }


def rank(name: str, known: Sequence[str]) -> tuple[int, str]:
    """Sort key: ``known`` names in their order, then the others by alphabet."""
    return (known.index(name) if name in known else len(known), name)


def attack_rank(attack: str) -> tuple[int, str]:
    """Sort key: clean first, then attacks as in :data:`ATTACK_TRAITS`; of one attack Linf before L2."""
    return rank(attack.partition(" ")[0], ("clean", *ATTACK_TRAITS))[0], attack


def cell_order(record: Mapping[Any, Any]) -> tuple[Any, ...]:
    """Sort key: clean first, then attack, eps by value, gradient, its source, n."""
    eps = record["eps_value"]
    return (
        attack_rank(record["attack"]),
        -1.0 if math.isnan(eps) else eps,
        record["eps"],
        rank(record["gradient"], GRADIENTS),
        record["source"],
        record["n"],
    )


def _order(record: Mapping[str, Any]) -> tuple[Any, ...]:
    line = record["backbone"], record["dataset"], rank(record["rule"], RULES), record["scale"]
    variant = record["model_variant"], record["attack_variant"]
    return *line, *variant, *cell_order(record), record["seed"], record["identity"]
