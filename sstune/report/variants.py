"""Group measurements by the settings of model and attack, and name the variants of a table line.

Runs that differ only in seeds share a table line. Runs with the same backbone, dataset, rule and scale that
differ in other keys have separate lines, distinguished by ``variant``, which names these keys. Training loss
and number of bits of networks for hashing come first, without their keys: "csq 32 bits".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sstune.inheritance import INHERITED
from sstune.report.rows import eps_value
from sstune.row import Ancestor, Row
from sstune.schema.aliases import first_name
from sstune.schema.run import declared

LABELS = ["backbone", "dataset", "rule", "scale"]
# Keys of single measurements, and keys without effect on results.
_NOT_SETTINGS = ("name", "eps", "gradient", "norm", "save_images")

# Training keys, dotted, as named in rows: an attack's network has those of its parent.
_OF_TRAINING = {
    first_name(key) for key, declaration in declared().items() if declaration.role.only_in_training
} | {"task.loss"}  # an attack's configuration has one, which it does not use

# Keys of a task whose values are always named, and how.
_ALWAYS_NAMED = {"task.loss": "{}", "task.bits": "{} bits"}

Settings = dict[str, str]


def labels_of(row: Row) -> dict[str, str]:
    """The columns :data:`LABELS` of a row."""
    config = row["config"]
    return {
        "backbone": config["backbone"]["name"],
        "dataset": config["dataset"]["label"],
        "rule": config["rule"]["name"],
        "scale": config["rule"].get("scale") or "",
    }


def name_variants(records: Sequence[dict[str, Any]]) -> None:
    """Add ``variant`` and its halves, ``model_variant`` and ``attack_variant``.

    Adversarial training, and loss and bits of hashing, are always named, also if common to all networks.

    Args:
        records: each with :data:`LABELS`, ``metric``, ``attack``, and its ``model`` and ``settings`` without
            seeds.
    """
    _name_part(records, "model", [*LABELS, "metric"], _by_origin)
    # settings of one attack are compared across all rules on a dataset, as readers compare these
    _name_part(records, "settings", ["backbone", "dataset", "metric", "attack"], _differences)
    for record in records:
        adversary = record["model"].get("task.adversarial", "null")
        if adversary != "null" and "task.adversarial=" not in record["model_variant"]:
            record["model_variant"] = joined(record["model_variant"], f"task.adversarial={adversary}")
        record["model_variant"] = joined(_coding(record["model"]), record["model_variant"])
        record["variant"] = joined(record["model_variant"], record["attack_variant"])


def coding_rank(model: Settings) -> tuple[str, float]:
    """Sort key: networks for hashing by training loss, then by number of bits."""
    bits = model.get("task.bits", "")
    return model.get("task.loss", ""), float(bits) if bits.isdecimal() else 0.0


def _coding(model: Settings) -> str:
    return joined(*(text.format(model[key]) for key, text in _ALWAYS_NAMED.items() if key in model))


def _without_coding(model: Settings) -> Settings:
    """Without what :func:`_coding` names, also of ancestors that agree with the model."""

    def named(key: str) -> bool:
        own = key.replace("init_from.", "")
        return own in _ALWAYS_NAMED and model[key] == model.get(own)

    return {key: value for key, value in model.items() if not named(key)}


def _name_part(
    records: Sequence[dict[str, Any]],
    part: str,
    shared: Sequence[str],
    name: Callable[[Sequence[Settings]], list[str]],
) -> None:
    """Name the differences in ``part`` among records that agree on ``shared``."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault(tuple(record[key] for key in shared), []).append(record)
    column = {"model": "model_variant", "settings": "attack_variant"}[part]
    for group in groups.values():
        for record, variant in zip(group, name([record[part] for record in group]), strict=True):
            record[column] = variant


def _by_origin(models: Sequence[Settings], depth: int = 0) -> list[str]:
    """Differences of models, comparing commands and files of their ancestors first: models of different
    origin differ in many keys, which are not named."""
    models = list(map(_without_coding, models))
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
    """For each, its ``key=value`` pairs that not all share."""
    common = set.intersection(*(set(one.items()) for one in settings))
    return [
        " ".join(f"{key}={value}" for key, value in sorted(set(one.items()) - common)) for one in settings
    ]


def joined(*names: str) -> str:
    """The non-empty names, joined by spaces."""
    return " ".join(filter(None, names))


def model_settings(row: Row) -> Settings:
    """Settings of the measured model: dotted keys -> text, with seeds; ancestors under ``init_from.``.

    An attack's model is its parent run, so that a finetune row and attacks on it agree. If the attack
    overrides a value of the parent (say, the rule), the parent's value is under ``as_trained.``.
    """
    config: Mapping[str, Any] = row["config"]
    ancestors = list(row["lineage"])
    if row["command"] != "attack":
        settings = {"command": row["command"]} | flatten(config)
    else:
        sections = [key for key in INHERITED["attack"] if isinstance(config.get(key), Mapping)]
        settings = flatten({key: _of_attack(key, config[key]) for key in sections})
        if ancestors and "config" in ancestors[-1]:
            trained = _stage(ancestors.pop())
            changed = [key for key, value in settings.items() if trained.get(key, value) != value]
            settings = trained | settings | {f"as_trained.{key}": trained[key] for key in changed}
        else:
            settings["command"] = "attack"
    data = row.get("datasets", {})
    # a configuration gives the data by label only; the files may differ
    if (test := data.get("test")) is not None:
        settings["datasets.test"] = test["digest"][:8]
    if (database := data.get("database")) is not None:
        settings["datasets.database"] = database["digest"][:8]
    for depth, ancestor in enumerate(reversed(ancestors), start=1):
        settings |= {"init_from." * depth + key: value for key, value in _stage(ancestor).items()}
    return settings


def _of_attack(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if f"{section}.{key}" not in _OF_TRAINING}


def attack_settings(row: Row) -> Settings:
    """Settings of the row's attack, without name, norm, eps and gradient, which each measurement has.

    With a cascade, results depend on the smaller values of eps, so the list of eps is a setting; so is the
    surrogate of an audit.
    """
    attack, audit = row["config"].get("attack", {}), row["config"].get("audit", {})
    settings = flatten({key: value for key, value in attack.items() if key not in _NOT_SETTINGS}, "attack.")
    settings |= flatten(audit, "audit.")
    if attack.get("cascade"):
        settings["attack.eps"] = " ".join(sorted(attack["eps"], key=lambda eps: eps_value(row, eps)))
    if "audit" in row:
        made = [*row["measurements"], *row["audit"].get("cells", [])]
        sources = {source for found in made if (source := found.get("source"))}
        settings |= {"audit.surrogate": " ".join(sorted(sources))} if sources else {}
    return settings


def without_seeds(settings: Settings) -> Settings:
    """Settings without seeds; runs with equal ones are averaged."""
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


def _stage(ancestor: Ancestor) -> Settings:
    """Settings of one entry of a lineage: a run's configuration, or a file's name and digest."""
    if "config" in ancestor:
        return {"command": ancestor["command"]} | flatten(ancestor["config"])
    return {"file": f"{Path(ancestor['file']).name}@{ancestor['sha256'][:8]}"}
