"""Preprocess a command line for Hydra: options, quoting of paths, expansion of run patterns."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from sstune.schema import RequestError, nearest
from sstune.schema.aliases import renamed
from sstune.validation.places import exists

# The supported options of Hydra: short form, and allowed values.
OPTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "--multirun": ("-m", ()),
    "--cfg": ("-c", ("job", "hydra", "all")),
    "--info": ("-i", ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")),
    "--package": ("-p", ("KEY",)),
    "--resolve": ("", ()),
}
# Keys whose value is a path, whose characters may have a meaning in Hydra's grammar.
PATHS = ("init_from", "out", "dataset.root", "dataset.cache", "audit.surrogate")

# Hydra's grammar: quotes around the value or an item of a list, null in a list, and brackets.
_HYDRAS = (
    r"""(['"]).*\1$|(['"]).*\2,|.*,(['"]).*\3(?:,|$)"""
    r"""|null,|.*,null(?:,|$)|\[.*\]$|\{.*\}$|\w+\(.*\)$|.*\$\{"""
)


def read(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options by their long names, each followed by its value, and overrides in Hydra's grammar.

    Raises:
        RequestError: an unknown option or value, options that cannot be combined, a key that is added or
            removed, or a pattern that matches no finished run.
    """
    options: list[str] = []
    overrides = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        if word.startswith("-"):
            options += _option(word, words)
        else:
            overrides.append(_override(word))
    if "--multirun" in options and len(set(options)) > 1:
        raise RequestError("-m: cannot be combined with another option")
    if options and not {"--multirun", "--cfg", "--info"} & set(options):
        raise RequestError(f"{options[0]}: needs --cfg job")
    for key in (override.partition("=")[0] for override in overrides):
        if re.match(r"hydra\b", key) and not options:
            raise RequestError(f"{key}: is for sweeps only, add -m")
        if re.match(r"hydra\b(?![/.]launcher)", key) and "--multirun" in options:
            raise RequestError(
                f"{key}: of Hydra's keys, a sweep supports hydra/launcher and hydra.launcher.* only"
            )
    return options, overrides


def _option(word: str, following: list[str]) -> list[str]:
    """The option and its value, from the same word (``--cfg=job``) or from the next one."""
    given, equals, value = word.partition("=")
    name = next((long for long, (short, _) in OPTIONS.items() if given in (long, short)), None)
    if name is None:
        known = [form for long, (short, _) in OPTIONS.items() for form in (long, short) if form]
        raise RequestError(f"{given}: no such option, {nearest(given, known)}")
    allowed = OPTIONS[name][1]
    if not allowed:
        if equals:
            raise RequestError(f"{given}: takes no value")
        return [name]
    if not equals:
        value = following.pop(0) if following else ""
    if name == "--package":
        return [f"{name}={value}"]
    if value not in allowed:
        raise RequestError(f"{given}: {value!r} is none of {', '.join(allowed)}")
    return [name, value]


def _override(argument: str) -> str:
    argument = renamed(argument)
    if argument.startswith(("+", "~")):
        added = "added" if argument.startswith("+") else "removed"
        key, _, text = argument.lstrip("+~").partition("=")
        raise RequestError(f"{argument}: keys cannot be {added}; to set one, write {key}={text or '…'}")
    key, equals, text = argument.partition("=")
    if not equals or key not in PATHS or not text or text == "null" or _is_hydras(text):
        return argument
    return f"{key}={','.join(map(quoted, _paths(key, text)))}"


def _is_hydras(text: str) -> bool:
    """Whether a value is written in Hydra's grammar: quoted, a list, a reference, a function, escaped."""
    escaped = "\\" in text and not glob.has_magic(text)
    return not exists(text) and (escaped or bool(re.match(_HYDRAS, text)))


def _paths(key: str, text: str) -> list[str]:
    """The paths in ``text``, separated by commas."""
    if exists(text):
        return [text]
    if key == "init_from" and glob.has_magic(text):
        if found := _finished_runs(text):
            return found
        parts = [_finished_runs(part) if glob.has_magic(part) else [part] for part in text.split(",")]
        if not all(parts):
            raise RequestError(f"init_from: {text} matches no finished run")
        return [path for part in parts for path in part]
    return text.split(",")


def _finished_runs(pattern: str) -> list[str]:
    """The finished runs that a pattern such as ``runs/finetune/*`` matches; existing folders are literal."""
    whole = Path(pattern).expanduser()
    folder = next(parent for parent in whole.parents if exists(str(parent)))
    search = Path(glob.escape(str(folder)), whole.relative_to(folder))
    return sorted(path for path in glob.glob(str(search)) if (Path(path) / "result.json").exists())


def quoted(text: str) -> str:
    """``text`` in Hydra's grammar, quoted if it would otherwise be parsed as another value."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(f"key={text}")
        if not override.is_sweep_override() and override.value() == text and not re.search(r"\$\{|\\", text):
            return text
    except HydraException:
        pass
    text = text.replace("${", r"\${")
    text = re.sub(r"(\\*)'", r"\1\1\\'", text)
    text = re.sub(r"(\\+)$", r"\1\1", text)
    return f"'{text}'"
