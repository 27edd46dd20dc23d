"""What was measured, once each, and which measurements may be averaged.

Runs that differ in nothing but seeds share a table line. Runs that agree on backbone, dataset, rule and scale
but differ elsewhere get lines of their own, told apart by ``variant``, which names those keys.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sstune.report.rows import Row, unique
from sstune.schema import RequestError
from sstune.validation import parse_eps

LABELS = ["backbone", "dataset", "rule", "scale"]
LINE = [*LABELS, "variant"]
CELL = ["attack", "eps", "gradient"]
RESULT = ["n", "correct", "accuracy", "seconds", "identity"]
TIDY = [*LABELS, "seed", "variant", "attack", "gradient", "eps", "eps_value", *RESULT]

RULES = (
    "bp", "sham", "usf", "frsf", "brsf", "fa", "fa_signed", "dfa", "kp", "wm", "pfa", "pfa_o",
)  # fmt: skip
ATTACKS = ("clean", "fgsm", "pgd")
GRADIENTS = ("rule", "exact")

Settings = dict[str, str]


def measurements(rows: Iterable[Row]) -> pd.DataFrame:
    """One line per test measurement of one seed, columns :data:`TIDY`; accuracy in [0, 1].

    A measurement that several rows repeat (the clean accuracy of a net, in each attack on it) stands once.
    What does not apply (the scale of bp, the eps of clean accuracy) is an empty text.

    Raises:
        RequestError: rows disagree about one measurement, or none measured the test split.
    """
    return frame(rows)[TIDY]


def frame(rows: Iterable[Row]) -> pd.DataFrame:
    """:func:`measurements` and the halves of ``variant``, ``model_variant``, ``attack_variant``; sorted."""
    records: dict[Hashable, dict[str, Any]] = {}
    for record in (record for row in unique(rows) for record in _records(row)):
        other = records.setdefault(record["replicate"], record)
        if other["correct"] != record["correct"]:
            raise RequestError(
                f"runs {other['identity'][:12]} and {record['identity'][:12]} disagree: {record['attack']} "
                f"{record['eps']} {other['correct']} and {record['correct']} correct of {record['n']}"
            )
    if not records:
        raise RequestError("no row holds a measurement on the test split")
    found = list(records.values())
    _name_variants(found, "model", LABELS, _by_origin)
    # an attack run in two ways is not one attack: say so across all rules on a dataset, which readers compare
    _name_variants(found, "settings", ["backbone", "dataset", "attack"], _differences)
    for record in found:
        record["variant"] = joined(record["model_variant"], record["attack_variant"])
    found.sort(key=_order)
    return pd.DataFrame(found)


def labels_of(row: Row) -> dict[str, str]:
    """The columns :data:`LABELS` of a row."""
    config = row["config"]
    return {
        "backbone": config["backbone"]["name"],
        "dataset": config["dataset"]["label"],
        "rule": config["rule"]["name"],
        "scale": config["rule"].get("scale", ""),
    }


def _records(row: Row) -> Iterable[dict[str, Any]]:
    model, settings = model_settings(row), attack_settings(row)
    config, labels = row["config"], labels_of(row)
    for found in row["measurements"]:
        if found["split"] != "test":
            continue
        clean = found["attack"] is None
        # clean accuracy depends neither on the attack nor on the attack's seed
        chosen = {} if clean else settings | {"seed": str(config["seed"])}
        cell = {
            "attack": found["attack"] or "clean",
            "gradient": found["gradient"] or "",
            "eps": found["eps"] or "",
        }
        yield {
            **labels,
            **cell,
            "seed": int(model.get("seed", config["seed"])) if clean else config["seed"],
            "eps_value": math.nan if clean else parse_eps(found["eps"]),
            "n": found["n"],
            "correct": found["correct"],
            "accuracy": found["correct"] / found["n"],
            "seconds": found.get("seconds", math.nan),
            "identity": row["identity"],
            "model": without_seeds(model),
            "settings": without_seeds(chosen),
            "replicate": json.dumps([labels, cell, found["n"], model, chosen], sort_keys=True),
        }


def _name_variants(
    records: Sequence[dict[str, Any]],
    part: str,
    shared: Sequence[str],
    name: Callable[[Sequence[Settings]], list[str]],
) -> None:
    """Where records agree on ``shared``, name what else tells their ``part`` apart."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault(tuple(record[key] for key in shared), []).append(record)
    column = {"model": "model_variant", "settings": "attack_variant"}[part]
    for group in groups.values():
        for record, variant in zip(group, name([record[part] for record in group]), strict=True):
            record[column] = variant


def _by_origin(models: Sequence[Settings], depth: int = 0) -> list[str]:
    """Nets that came through another command or file differ in many keys, which need no naming: one look back
    at a time, only nets of one origin are compared further."""
    here = {"init_from." * depth + key for key in ("command", "file")}
    if not any(here & model.keys() for model in models):
        return _differences(models)
    origins = _differences([{key: model[key] for key in here & model.keys()} for model in models])
    names = list(origins)
    for origin in set(origins):
        same = [index for index, name in enumerate(origins) if name == origin]
        for index, rest in zip(same, _by_origin([models[index] for index in same], depth + 1), strict=True):
            names[index] = joined(origin, rest)
    return names


def _differences(settings: Sequence[Settings]) -> list[str]:
    """For each, the ``key=value`` pairs that are not common to all."""
    common = set.intersection(*(set(one.items()) for one in settings))
    return [
        " ".join(f"{key}={value}" for key, value in sorted(set(one.items()) - common)) for one in settings
    ]


def joined(*names: str) -> str:
    """The names that are not empty, with spaces between."""
    return " ".join(filter(None, names))


def model_settings(row: Row) -> Settings:
    """What the measured model came from: dotted keys -> text, seeds included, ancestors under ``init_from.``.

    An attack's model is its parent run, so a finetune row and the attacks on it agree. Where the attack chose
    another value than the parent (say, another rule), the parent's stands under ``as_trained.``.
    """
    config, ancestors = row["config"], list(row["lineage"])
    if row["command"] != "attack":
        settings = {"command": row["command"]} | flatten(config)
    else:
        sections = ("backbone", "dataset", "task", "rule")
        settings = flatten({key: config[key] for key in sections if key in config})
        if ancestors and "config" in ancestors[-1]:
            trained = _stage(ancestors.pop())
            changed = [key for key, value in settings.items() if trained.get(key, value) != value]
            settings = trained | settings | {f"as_trained.{key}": trained[key] for key in changed}
        else:
            settings["command"] = "attack"
    data = row.get("datasets", {}).get("test")
    if data is not None:  # a configuration names data by label only, and may be used on other data
        settings["datasets.test"] = data["digest"][:8]
    for depth, ancestor in enumerate(reversed(ancestors), start=1):
        settings |= {"init_from." * depth + key: value for key, value in _stage(ancestor).items()}
    return settings


def attack_settings(row: Row) -> Settings:
    """How the row attacked; name, eps and gradient belong to the single measurement."""
    attack = row["config"].get("attack", {})
    return flatten({key: attack[key] for key in attack if key not in ("name", "eps", "gradient")}, "attack.")


def without_seeds(settings: Settings) -> Settings:
    """What runs must share to be averaged."""
    return {key: value for key, value in settings.items() if key.rpartition(".")[2] != "seed"}


def flatten(config: Mapping[str, Any], prefix: str = "") -> Settings:
    """``{"a": {"b": [1]}}`` -> ``{"a.b": "[1]"}``."""
    flat: Settings = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return flat


def _stage(ancestor: Mapping[str, Any]) -> Settings:
    """One entry of a lineage. Runs compare by their configs, not by identities, which hold the seed."""
    if "config" in ancestor:
        return {"command": ancestor["command"]} | flatten(ancestor["config"])
    return {"file": f"{Path(ancestor['file']).name}@{ancestor['sha256'][:8]}"}


def rank(name: str, known: Sequence[str]) -> tuple[int, str]:
    """Sort key: ``known`` names in their order, then the others by alphabet."""
    return (known.index(name) if name in known else len(known), name)


def cell_order(record: Mapping[Any, Any]) -> tuple[Any, ...]:
    """Sort key: clean first, then attack, eps by value, gradient, n."""
    eps = record["eps_value"]
    return (
        rank(record["attack"], ATTACKS),
        -1.0 if math.isnan(eps) else eps,
        record["eps"],
        rank(record["gradient"], GRADIENTS),
        record["n"],
    )


def _order(record: Mapping[str, Any]) -> tuple[Any, ...]:
    line = record["backbone"], record["dataset"], rank(record["rule"], RULES), record["scale"]
    variant = record["model_variant"], record["attack_variant"]
    return *line, *variant, *cell_order(record), record["seed"], record["identity"]
