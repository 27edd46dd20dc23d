"""Declaration of configuration keys: default, range, help text, role, and whether the identity includes it.

A key is a dataclass field with metadata, from which the range check, the identity, the report and
docs/configuration.md are derived.
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
    """The closed interval [``low``, ``high``], without ``low`` if ``above``; in a list or mapping, for each
    number."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.above else self.low <= value) and value <= self.high


class Identity(Enum):
    """Whether a key is part of a run's identity.

    ``UNLESS_DEFAULT`` is for keys added later, so that earlier runs keep their identity. The default of such
    a key must never change.
    """

    ALWAYS = "always"
    UNLESS_DEFAULT = "unless default"
    NEVER = "never"


class Role(Enum):
    """The part of the program that uses a key."""

    GENERAL = "general"
    ATTACK = "attack"
    TRAINING = "training"
    AUGMENTATION = "augmentation"  # how training images are changed, once they are read
    SUBSET = "subset"  # which training images are used
    NORMALIZATION = "normalization"

    @property
    def only_in_training(self) -> bool:
        """Whether only training uses the key; an attack inherits its value from the run it attacks."""
        return self in (Role.TRAINING, Role.AUGMENTATION, Role.SUBSET)


@dataclass(frozen=True)
class Key:
    """Metadata of a key."""

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
    """The metadata of a field; defaults if it was not made by :func:`key`."""
    return item.metadata.get(_METADATA, Key())


def keys_of(owner: type) -> dict[str, Key]:
    """The keys that a dataclass declares, by the names of its fields."""
    return {item.name: key_of(item) for item in fields(owner)}
