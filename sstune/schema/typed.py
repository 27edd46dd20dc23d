"""Type checks of configurations created in Python, as Hydra does for command lines."""

from __future__ import annotations

from typing import TypeVar, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sstune.schema.groups import GROUPS
from sstune.schema.request import RequestError

Config = TypeVar("Config")


def typed(group: str, config: Config) -> Config:
    """A copy of ``config`` with each value converted to its field's type; enums may be given by name.

    Args:
        group: the config group, for example ``"rule"``, for error messages.

    Raises:
        RequestError: a value has the wrong type, or the class is not the one of ``config.name``.
    """
    name = str(getattr(config, "name", None))
    expected = GROUPS[group].get(name, GROUPS[group]["plain"])
    if not isinstance(config, expected):
        raise RequestError(f"{group}.name: {name} needs a {expected.__name__}, not a {type(config).__name__}")
    try:
        return cast(Config, OmegaConf.to_object(OmegaConf.structured(config)))
    except OmegaConfBaseException as error:
        raise RequestError(f"{group}.{error.full_key}: {str(error).splitlines()[0]}") from error
