"""Identity of a run: a hash of the part of its configuration on which results depend.

Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from enum import StrEnum
from typing import Any

from sstune.schema import RunConfig, Start, traits_of
from sstune.schema.aliases import under_first_names
from sstune.schema.keys import Identity, Role, default_of, key_of, keys_of

SCHEMA_VERSION = 1

# Sections and keys that only training uses; an attack inherits them from its parent.
TRAINING_KEYS = tuple(name for name, key in keys_of(RunConfig).items() if key.role is Role.TRAINING)
_UNUSED_BY_RULE = {"bp": ("scale", "include", "exclude"), "sham": ("scale",)}
_UNUSED_BY_ADVERSARY: dict[str | None, tuple[str, ...]] = {None: ("eps", "step_size"), "fgsm": ("step_size",)}


def semantic(config: RunConfig) -> dict[str, Any]:
    """The part of a configuration on which results depend, as plain nested values.

    Keys have their first names (:mod:`sstune.schema.aliases`). Mappings whose order matters are lists.
    """
    values = _semantic(config)
    unused = Role.TRAINING if config.command == "attack" else Role.ATTACK
    for name, key in keys_of(RunConfig).items():
        if key.role is unused:
            values.pop(name, None)
    for dotted in _without_effect(config):
        section, _, name = dotted.partition(".")
        if name:
            values.get(section, {}).pop(name, None)
        else:
            values.pop(section, None)
    return under_first_names(values)


def _semantic(section: Any) -> dict[str, Any]:
    """The keys of one section that are part of the identity, regardless of other keys."""
    values: dict[str, Any] = {}
    for item in fields(section):
        value, counts = getattr(section, item.name), key_of(item).identity
        if counts is Identity.NEVER or (counts is Identity.UNLESS_DEFAULT and value == default_of(item)):
            continue
        if is_dataclass(value):
            if inner := _semantic(value):  # a later section, all at its defaults, is left out
                values[item.name] = inner
        elif isinstance(value, dict):
            values[item.name] = [{name: plain(inner)} for name, inner in value.items()]
        else:
            values[item.name] = plain(value)
    return values


def _without_effect(config: RunConfig) -> list[str]:
    """Keys and sections without effect, given the values of other keys; the identity omits them."""
    keys = [f"rule.{key}" for key in _UNUSED_BY_RULE.get(config.rule.name, ())]
    keys += [f"adversary.{key}" for key in _UNUSED_BY_ADVERSARY.get(config.adversary.attack, ())]
    if getattr(config.rule, "start", None) is Start.weights:
        keys.append("rule.scale")  # scale of a random start
    traits = traits_of(config.attack.name)
    if not traits.suite:
        keys.append("audit")
    # random numbers are seeded per sample, except in other libraries, to which a suite passes batch_size
    if not (traits.whole_batches or (traits.suite and config.attack.batch_size)):
        keys.append("attack.batch_size")
    if config.dataset.train_n is None and config.dataset.shots is None:
        keys.append("dataset.subset_seed")
    if not config.optimizer.weight_decay_milestones:
        keys += ["optimizer.weight_decay_milestones", "optimizer.weight_decay_gamma"]
    return keys


def plain(value: Any, names: bool = False) -> Any:
    """Nested lists and mappings with enums replaced by their values, or by their ``names``."""
    if isinstance(value, dict):
        return {key: plain(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item, names) for item in value]
    if isinstance(value, StrEnum):
        return value.name if names else value.value
    return value


def identity(config: RunConfig, parent: str | None, data: str | None, surrogates: Sequence[str] = ()) -> str:
    """sha256 of everything that results depend on.

    Args:
        parent: identity of the parent run, or sha256 of the checkpoint file.
        data: fingerprint of data that the configuration gives by path only.
        surrogates: identities of runs, or sha256 of checkpoints, of an attack's surrogates.
    """
    content = {"schema": SCHEMA_VERSION, "config": semantic(config), "parent": parent, "data": data}
    if surrogates:
        content["surrogates"] = list(surrogates)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
