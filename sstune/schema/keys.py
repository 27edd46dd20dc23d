"""How a key of the configuration is declared: default, range, help text, and its part in a run's identity.

A key is a field of a dataclass. What is declared besides type and default is the field's metadata; the range
check, the identity, the report and docs/configuration.md are derived from it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import Enum
from functools import partial
from typing import Any

_METADATA = "key"


@dataclass(frozen=True)
class Range:
    """``low`` and ``high`` are allowed themselves, ``low`` not if ``above``. Of a list or a mapping: of each
    number in it."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.above else self.low <= value) and value <= self.high


class Identity(Enum):
    """Whether a key is part of a run's identity.

    ``UNLESS_DEFAULT`` is for a key that was added later: runs from before keep their identity. The default of
    such a key must never change.
    """

    ALWAYS = "always"
    UNLESS_DEFAULT = "unless default"
    NEVER = "never"


class Role(Enum):
    """What a key is used for."""

    GENERAL = "general"
    ATTACK = "attack"
    TRAINING = "training"
    AUGMENTATION = "augmentation"  # how training images are changed, once they are read
    SUBSET = "subset"  # which training images are used
    NORMALIZATION = "normalization"

    @property
    def only_in_training(self) -> bool:
        """Whether an attack takes the key's value from the run that trained its network."""
        return self in (Role.TRAINING, Role.AUGMENTATION, Role.SUBSET)


@dataclass(frozen=True)
class Key:
    """What a field declares besides type and default."""

    help: str = ""
    within: Range = Range()
    role: Role = Role.GENERAL
    identity: Identity = Identity.ALWAYS


def key(
    default: Any,
    help: str,
    *,
    within: Range = Range(),
    role: Role = Role.GENERAL,
    identity: Identity = Identity.ALWAYS,
) -> Any:
    """A dataclass field for a key.

    Args:
        default: OmegaConf's ``MISSING`` for a key that must be given. Lists, mappings and dataclass instances
            are copied for each configuration.
        help: one or two sentences for docs/configuration.md.
    """
    return _field(default, {_METADATA: Key(help, within, role, identity)})


def redefined(owner: type, name: str, default: Any) -> Any:
    """The field ``name`` of ``owner`` for a subclass, with another default."""
    (inherited,) = (item for item in fields(owner) if item.name == name)
    return _field(default, inherited.metadata)


def _field(default: Any, metadata: Mapping[str, Any]) -> Any:
    if getattr(type(default), "__hash__", None) is None:  # mutable
        return field(default_factory=partial(copy.deepcopy, default), metadata=metadata)
    return field(default=default, metadata=metadata)


def default_of(item: Field[Any]) -> Any:
    """The default of a field."""
    return item.default if item.default_factory is MISSING else item.default_factory()


def key_of(item: Field[Any]) -> Key:
    """What a field declares; nothing where it was made without :func:`key`."""
    return item.metadata.get(_METADATA, Key())


def keys_of(owner: type) -> dict[str, Key]:
    """The keys that a dataclass declares, by the names of its fields."""
    return {item.name: key_of(item) for item in fields(owner)}
