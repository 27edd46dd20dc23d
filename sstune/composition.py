"""From command-line overrides to a typed configuration, and from Hydra's errors to one line."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sstune import schema
from sstune.schema import COMMANDS, GROUPS, AuditConfig, RequestError, RunConfig, nearest
from sstune.validation import validate

_PACKAGE = Path(__file__).resolve().parent
# Installed, conf/ lies inside the package; in a checkout, beside it.
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
# What a run takes from the run it starts from, unless asked for otherwise.
INHERITED = ("backbone", "dataset", "task", "rule", "seed")


def compose(command: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration that ``sstune <command> <overrides>`` stands for, not yet validated.

    Raises:
        RequestError: it does not compose; one line with file or key and the nearest right spelling.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        plain = [override for override in parsed if _sets_a_value(override)]
        choices = [override.input_line for override in parsed if override not in plain]
        config = copy.deepcopy(_composed(CONF, command, tuple(map(str, choices))))
        for override in plain:
            OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
        return typed(config, command)
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: rule=null
        raise RequestError(explain(error, command)) from error


def _sets_a_value(override: Override) -> bool:
    """Whether an override sets one value, and does not choose among configurations."""
    key = override.key_or_group
    chooses = key in (*GROUPS, "experiment", "local") or "/" in key or override.package is not None
    return override.type is OverrideType.CHANGE and not chooses and not override.is_sweep_override()


@cache
def _composed(conf: Path, command: str, choices: tuple[str, ...]) -> DictConfig:
    """What Hydra composes; kept, as a sweep's cells often differ in values only and composing takes 0.1 s."""
    schema.register()
    initialised = GlobalHydra.instance().is_initialized()
    context = nullcontext() if initialised else hydra.initialize_config_dir(str(conf), version_base="1.3")
    with context:
        return hydra.compose(command, list(choices))


def typed(config: DictConfig, command: str) -> RunConfig:
    """A composed configuration as plain dataclasses.

    Raises:
        RequestError: a value that must be given is absent.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise RequestError("\n".join(f"{key}: must be given, e.g. {key}=…" for key in missing))
    result = OmegaConf.to_object(config)
    if not isinstance(result, COMMANDS[command]):
        raise RequestError(f"conf/{command}.yaml: the defaults must begin with schema/{command}")
    return result


class Cell(NamedTuple):
    """One run of a sweep: its part of the command line, and what that asks for."""

    overrides: list[str]
    config: RunConfig
    asked: set[str]


def cells(command: str, overrides: Sequence[str]) -> list[Cell]:
    """Every cell of a sweep, composed and validated before the first is run.

    Raises:
        RequestError: naming the cell and what is wrong with it.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        (batch,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    except HydraException as error:
        raise RequestError(explain(error, command)) from error
    composed = []
    for cell in batch:
        config = compose(command, cell)
        try:
            validate(config)
        except RequestError as error:
            raise RequestError(f"{error} (in the cell {' '.join(cell)})") from error
        composed.append(Cell(cell, config, asked(command, config, cell)))
    return composed


def asked(command: str, config: RunConfig, overrides: Sequence[str]) -> set[str]:
    """What a command line asks for: the keys on it as written, and the groups that a preset replaces.

    ``rule`` asks for the whole group, ``rule.scale`` for that key of whatever rule there is. A preset's
    training settings are not asked for: an experiment names them once for all its commands.
    """
    default = compose(command)
    chosen = {group for group in GROUPS if getattr(config, group).name != getattr(default, group).name}
    return {re.split(r"[=@]", override.lstrip("+~"))[0] for override in overrides} | (chosen & set(INHERITED))


def known_keys() -> set[str]:
    """Every key that some configuration has, dotted."""
    keys = {item.name for item in fields(RunConfig)} | {"experiment", "model.import"}
    keys |= {f"audit.{item.name}" for item in fields(AuditConfig)}
    for group, options in GROUPS.items():
        for option in options.values():
            keys |= {f"{group}.{item.name}" for item in fields(option)}
    return keys


def options(group: str) -> list[str]:
    """Names of a config group's options."""
    folder = CONF / group
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def restore(values: dict[str, Any]) -> RunConfig:
    """A configuration from the plain values of a run's ``config.yaml``.

    The dataclass of each group is the one of its name, or the smallest one, that has all those fields; an
    older version may have had less.

    Raises:
        RequestError: the values fit no schema of this version.
    """
    command = COMMANDS.get(str(values.get("command")))
    if command is None:
        raise RequestError(f"command: {values.get('command')!r} is none of {', '.join(COMMANDS)}")
    root = OmegaConf.structured(command)
    for group, choices in GROUPS.items():
        section = values.get(group)
        section = section if isinstance(section, dict) else {}
        able = [
            option for option in choices.values() if set(section) <= {item.name for item in fields(option)}
        ]
        if not section or not able:
            raise RequestError(f"{group}: {sorted(section)} are the keys of no {group} of this version")
        named = choices.get(section.get("name", ""))
        chosen = named if named in able else min(able, key=lambda option: len(fields(option)))
        root[group] = OmegaConf.merge(OmegaConf.structured(chosen), section)
    try:
        rest = {key: value for key, value in values.items() if key not in GROUPS}
        merged = OmegaConf.merge(root, rest)
        assert isinstance(merged, DictConfig)
        return typed(merged, values["command"])
    except OmegaConfBaseException as error:
        raise RequestError(str(error).splitlines()[0]) from error


def explain(error: BaseException, command: str) -> str:
    """Hydra's or OmegaConf's error in one line: file or key, what was expected, the nearest spelling."""
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read as KEY=VALUE ({str(error).splitlines()[0]})"
    messages = [str(link) for link in _chain(error)]
    text = "\n".join(messages)
    where = re.search(r"In '((?:experiment|local)/[^']+)'", text)
    prefix = f"conf/{where[1]}.yaml: " if where else ""

    option = re.search(r"Could not find '([^']+)/([^'/]*)'", text)
    if option and option[1] in [*GROUPS, "experiment"]:
        return f"{prefix}{option[1]}: there is no {option[2]!r}, {nearest(option[2], options(option[1]))}"
    sweep = re.search(r"Ambiguous value for argument '([^']+)'", text)
    if sweep:
        return f"{sweep[1]}: several values need -m: sstune {command} -m {sweep[1]}"
    key = re.search(r"full_key: (\S+)", text) or re.search(r"Could not override '([^']+)'", text)
    if key and re.search(r"Key '[^']*' (?:is )?not in|is not in struct|Could not override", text):
        if key[1] in known_keys():
            return f"{prefix}{key[1]}: the chosen {key[1].partition('.')[0]} has no such key"
        return f"{prefix}{key[1]}: no such key, {nearest(key[1], known_keys())}"
    if key:
        stated = next(message for message in messages if "full_key" in message)
        return f"{prefix}{key[1]}: {stated.splitlines()[0]}"
    return prefix + next(line for line in text.splitlines() if line.strip())


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
