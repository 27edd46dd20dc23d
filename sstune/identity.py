"""What tells one run from another: the part of its configuration on which the outcome depends.

Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from typing import Any

from sstune.schema import ClassificationConfig, RunConfig, Start, traits_of

SCHEMA_VERSION = 1

# Where and how a run is computed, not what: changing these does not make another run.
_NOT_SEMANTIC = {
    "": (
        "device",
        "threads",
        "workers",
        "compile",
        "deterministic",
        "out",
        "force",
        "init_from",
        "alignment",
    ),
    "dataset": ("root", "cache", "download"),
    "attack": ("surrogates",),
    "audit": ("strict", "surrogate"),
    "optimizer": ("fused",),
}
# What has no part in a command's outcome: training does not depend on a later attack, and an attack's
# training settings are its parent's.
TRAINING_KEYS = (
    "optimizer",
    "schedule",
    "epochs",
    "batch_size",
    "accumulate",
    "clip_norm",
    "ema",
    "select",
    "patience",
    "precision",
)
_UNUSED = {
    "train": ("attack", "audit", "model"),
    "finetune": ("attack", "audit", "model"),
    "attack": (*TRAINING_KEYS, "model"),
}
_INERT_BY_ADVERSARY: dict[str | None, tuple[str, ...]] = {
    None: ("adversarial_eps", "adversarial_step_size"),
    "fgsm": ("adversarial_step_size",),
}
_UNUSED_BY_RULE = {"bp": ("scale", "include", "exclude"), "sham": ("scale",)}
# Values with which a key changes nothing: it is left out, so runs from before there was the key are found.
_NEUTRAL: dict[str, dict[str, Any]] = {
    "": {"select": "best", "accumulate": 1, "ema": None, "patience": None},
    "dataset": {
        "crop_scale": None,
        "transforms": [],
        "cutout": 0,
        "train_n": None,
        "shots": None,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "stream": False,
        "skip_corrupt": False,
    },
    "task": {"adversarial": None},
    "optimizer": {"lr_factors": [], "freeze": []},
    "attack": {
        "norm": "Linf",
        "eot": 1,
        "redraw": None,
        "targeted": None,
        "cascade": False,
        "eight_bit": False,
        "loss": "ce",
        "early_exit": True,
        "save_images": 0,
    },
}
# Mappings whose order matters; among sorted keys it would be lost.
_ORDERED = (("dataset", "transforms"), ("optimizer", "lr_factors"))


def semantic(config: RunConfig) -> dict[str, Any]:
    """The part of a configuration on which the outcome depends, as plain nested values."""
    values = plain(asdict(config))
    for section, keys in _NOT_SEMANTIC.items():
        owner = values[section] if section else values
        for key in keys:
            owner.pop(key, None)
    for key in _UNUSED[config.command]:
        values.pop(key)
    if not traits_of(config.attack.name).suite:
        values.pop("audit", None)
    for key in _UNUSED_BY_RULE.get(config.rule.name, ()):
        values["rule"].pop(key)
    for section, inert in _inert(config).items():
        for key in inert:
            values[section].pop(key, None)
    for section, key in _ORDERED:
        if section in values:
            values[section][key] = [{name: value} for name, value in values[section][key].items()]
    for section, neutral in _NEUTRAL.items():
        owner = values.get(section, {}) if section else values
        for key, value in neutral.items():
            if key in owner and owner[key] == value:
                del owner[key]
    return values


def _inert(config: RunConfig) -> dict[str, tuple[str, ...]]:
    """Keys that change nothing in the company of the others, so they do not tell runs apart."""
    inert: dict[str, tuple[str, ...]] = {}
    if getattr(config.rule, "start", None) is Start.weights:
        inert["rule"] = ("scale",)  # that of a random start
    traits = traits_of(config.attack.name)
    # a suite without a batch size takes that of each of its attacks
    in_batches = traits.whole_batches or (traits.suite and config.attack.batch_size)
    if not in_batches and config.command == "attack":
        inert["attack"] = ("batch_size",)  # draws are keyed by sample
    if config.dataset.train_n is None and config.dataset.shots is None:
        inert["dataset"] = ("subset_seed",)
    if isinstance(config.task, ClassificationConfig):
        inert["task"] = _INERT_BY_ADVERSARY.get(config.task.adversarial, ())
    if not config.optimizer.weight_decay_milestones and config.command != "attack":
        inert["optimizer"] = ("weight_decay_milestones", "weight_decay_gamma")
    return inert


def plain(value: Any, names: bool = False) -> Any:
    """Enums as their values, or as their ``names``, in nested lists and mappings."""
    if isinstance(value, dict):
        return {key: plain(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item, names) for item in value]
    if isinstance(value, StrEnum):
        return value.name if names else value.value
    return value


def identity(config: RunConfig, parent: str | None, data: str | None, surrogates: Sequence[str] = ()) -> str:
    """sha256 over what the outcome depends on.

    Args:
        parent: identity of the run that this one starts from, or sha256 of the checkpoint file.
        data: fingerprint of data that the configuration names only by path.
        surrogates: identities of runs or sha256 of checkpoints that an attack looks through besides.
    """
    content = {"schema": SCHEMA_VERSION, "config": semantic(config), "parent": parent, "data": data}
    if surrogates:
        content["surrogates"] = list(surrogates)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
