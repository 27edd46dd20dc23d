"""Compose a typed configuration from command-line overrides, or restore it from stored values."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigTypeError, MissingMandatoryValue, OmegaConfBaseException, ValidationError

from sstune import catalogue, mistakes, schema
from sstune.inheritance import INHERITED
from sstune.schema import COMMANDS, GROUPS, RequestError, RunConfig, nearest
from sstune.schema.aliases import renamed, under_present_names
from sstune.schema.run import resolve_aliases
from sstune.validation import validate
from sstune.validation.leaves import leaves


@dataclass(frozen=True)
class Request:
    """A requested run: its configuration, and the keys that the command line sets explicitly.

    ``explicit`` holds the keys of the command line as written, and each group whose option an experiment
    changes. ``rule`` stands for the whole group, ``rule.scale`` for one key. Training settings of an
    experiment are not explicit, since they serve all commands.
    """

    config: RunConfig
    explicit: frozenset[str] = frozenset()

    @classmethod
    def of(cls, config: RunConfig, overrides: Sequence[str]) -> Request:
        """The request of a command line, given the configuration composed from it."""
        default = _default_names(catalogue.CONF, config.command)
        chosen = {group for group in GROUPS if getattr(config, group).name != default[group]}
        keys = {re.split(r"[=@]", renamed(override).lstrip("+~"))[0] for override in overrides}
        if "task" in keys:
            keys.add("adversary")  # once part of the task: with another task, it is not inherited either
        return cls(config, frozenset(keys | (chosen & set(INHERITED["attack"]))))

    @property
    def task_is_known(self) -> bool:
        """Whether the task is not inherited from the run of ``init_from``."""
        return self.config.init_from is None or "task" in self.explicit

    def sets(self, section: str) -> bool:
        """Whether the command line sets a section or one of its keys."""
        return any(key.partition(".")[0] == section for key in self.explicit)


@cache
def _default_names(conf: Path, command: str) -> dict[str, str]:
    """The name in each group of a command's default configuration."""
    default = compose(command)
    return {group: getattr(default, group).name for group in GROUPS}


def request(command: str, overrides: Sequence[str] = ()) -> Request:
    """The validated request of ``sstune <command> <overrides>``.

    Raises:
        RequestError: the command line cannot be composed, or its configuration is invalid.
    """
    config = compose(command, overrides)
    asked = Request.of(config, overrides)
    validate(config, asked.task_is_known)
    return asked


def compose(command: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of ``sstune <command> <overrides>``, not validated.

    Raises:
        RequestError: it cannot be composed; one line with the file or key and the nearest valid spelling.
    """
    try:
        parsed = [_parsed(override) for override in overrides]
        wrong = [problem for override in parsed if (problem := mistakes.in_override(override, command))]
        if wrong:
            raise RequestError(*wrong)
        plain = [override for override in parsed if _sets_a_value(override)]
        choices = [override.input_line for override in parsed if override not in plain]
        pickled, chosen = _composed(catalogue.CONF, command, tuple(map(str, choices)))
        config = pickle.loads(pickled)
        for override in plain:
            _set(config, override)
        _check_what_is_chosen(config, chosen, command)
        return typed(config, command)
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: rule=null
        raise RequestError(mistakes.explain(error, command)) from error


def _check_what_is_chosen(config: DictConfig, chosen: Mapping[str, str], command: str) -> None:
    """Check that ``command`` and each group's ``name`` agree with the chosen options.

    Raises:
        RequestError: they do not; the message says how to choose another option.
    """
    if config.command != command:
        known = config.command if config.command in COMMANDS else "|".join(COMMANDS)
        raise RequestError(f"command: is the first word of the command line, write sstune {known} …")
    wrong = [
        catalogue.choice_problem(group, chosen[group], OmegaConf.select(config, f"{group}.name"))
        for group in GROUPS
    ]
    if found := [problem for problem in wrong if problem]:
        raise RequestError(*found)


@cache
def _parsed(text: str) -> Override:
    """Cached, as the cells of a sweep share most overrides."""
    try:
        return OverridesParser.create().parse_override(renamed(text))
    except (HydraException, ValueError) as error:  # ValueError: an integer with too many digits
        raise RequestError(mistakes.unreadable(text)) from error


def _set(config: DictConfig, override: Override) -> None:
    try:
        OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
    except (ValidationError, ConfigTypeError, TypeError) as error:
        raise RequestError(mistakes.in_value(override)) from error


def _sets_a_value(override: Override) -> bool:
    """Whether an override sets a value, rather than choosing an option of a group."""
    return override.key_or_group not in (*GROUPS, "experiment", "local")


@cache
def _composed(conf: Path, command: str, choices: tuple[str, ...]) -> tuple[bytes, dict[str, str]]:
    """The configuration that Hydra composes, as a pickled DictConfig, and the chosen option of each group.

    Cached, as composing takes 0.1 s and cells of a sweep often differ in values only. Unpickling is five
    times as fast as a deep copy.
    """
    schema.register()
    initialised = GlobalHydra.instance().is_initialized()
    context = nullcontext() if initialised else hydra.initialize_config_dir(str(conf), version_base="1.3")
    with context:
        config = hydra.compose(command, list(choices), return_hydra_config=True)
    chosen = dict(config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]
    if unknown := resolve_aliases(config):
        raise RequestError(*(mistakes.no_such_key(key) for key in unknown))
    return pickle.dumps(config), chosen


def typed(config: DictConfig, command: str) -> RunConfig:
    """Convert a composed configuration to dataclasses.

    Raises:
        RequestError: a required value is missing.
    """
    try:
        result = OmegaConf.to_object(config)
    except MissingMandatoryValue as error:
        missing = sorted(OmegaConf.missing_keys(config))
        raise RequestError(*(f"{key}: must be given, e.g. {key}=…" for key in missing)) from error
    if not isinstance(result, COMMANDS[command]):
        raise RequestError(f"conf/{command}.yaml: the defaults must begin with schema/{command}")
    return result


class Cell(NamedTuple):
    """One run of a sweep: its overrides and its request."""

    overrides: list[str]
    request: Request


def cells(command: str, overrides: Sequence[str]) -> list[Cell]:
    """Compose and validate every cell of a sweep.

    Raises:
        RequestError: a cell is invalid; the message names it.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    try:
        parsed = [_parsed(override) for override in overrides]
        (batch,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    except HydraException as error:
        raise RequestError(mistakes.explain(error, command)) from error
    composed = []
    for cell in batch:
        config = compose(command, cell)
        asked = Request.of(config, cell)
        try:
            validate(config, asked.task_is_known)
        except RequestError as error:
            where = f"(in the cell {' '.join(cell)})"
            raise RequestError(*(f"{problem} {where}" for problem in error.problems)) from error
        composed.append(Cell(cell, asked))
    return composed


def restore(values: Any) -> RunConfig:
    """A configuration from the plain values of a run's ``config.yaml``.

    Texts with interpolations such as ``${oc.env:HOME}`` are refused. The dataclass of each group is the one
    of its name that has all stored fields; older versions may have stored fewer.

    Raises:
        RequestError: the values match no schema of this version.
    """
    if not isinstance(values, dict):
        raise RequestError("not a mapping of keys to values")
    _check_text(values)
    values = under_present_names(values)
    command = values.get("command")
    if not isinstance(command, str) or command not in COMMANDS:
        raise RequestError(f"command: {command!r} is none of {', '.join(COMMANDS)}")
    try:
        root = OmegaConf.structured(COMMANDS[command])
        for group in GROUPS:
            section = values.get(group)
            section = section if isinstance(section, dict) else {}
            root[group] = OmegaConf.merge(OmegaConf.structured(_schema_of(group, section)), section)
        rest = {str(key): value for key, value in values.items() if key not in GROUPS}
        merged = OmegaConf.merge(root, rest)
        assert isinstance(merged, DictConfig)
        return typed(merged, command)
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise RequestError(str(error).splitlines()[0]) from error


def _schema_of(group: str, section: dict[str, Any]) -> type:
    """The dataclass that has the keys of a stored section."""
    keys = {str(key) for key in section}
    able = {kind: {item.name for item in fields(kind)} for kind in GROUPS[group].values()}
    able = {kind: known for kind, known in able.items() if keys <= known}
    if not keys or not able:
        raise RequestError(f"{group}: no {group} of this version has the keys {sorted(keys)}")
    named = [kind for kind in catalogue.schemas(group, str(section.get("name"))) if kind in able]
    if not named:
        name, known = section.get("name"), catalogue.options(group)
        raise RequestError(
            f"{group}.name: {name!r} does not have the keys {sorted(keys)}, {nearest(str(name), known)}"
        )
    return min(named, key=lambda kind: able[kind] != keys)


def restored_section(section: Any, values: Any) -> Any:
    """``section``, a dataclass of a group, updated with stored plain ``values``.

    Raises:
        RequestError: the values do not fit the dataclass.
    """
    _check_text(values)
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(section), values))
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise RequestError(str(error).splitlines()[0]) from error


def _check_text(values: Any) -> None:
    """Check that no text holds an interpolation, which Hydra would replace."""
    try:
        found = leaves(values)
    except ValueError as error:
        raise RequestError(str(error)) from error
    for key, held in found.items():
        if any(isinstance(text, str) and "${" in text for text in held):
            raise RequestError(f"{key}: holds ${{…}}, a reference, which stored values must not")
