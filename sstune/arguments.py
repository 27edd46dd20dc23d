"""A command line before Hydra reads it: options, paths as they are written, patterns of runs expanded."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from sstune.schema import RequestError, nearest
from sstune.schema.aliases import renamed
from sstune.validation.places import exists

# Of Hydra's own options, those that make sense here: short form, and what may follow.
OPTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "--multirun": ("-m", ()),
    "--cfg": ("-c", ("job", "hydra", "all")),
    "--info": ("-i", ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")),
    "--package": ("-p", ("KEY",)),
    "--resolve": ("", ()),
}
# Keys whose value is one path, of characters that Hydra's grammar has another meaning for, or none.
PATHS = ("init_from", "out", "dataset.root", "dataset.cache", "audit.surrogate")

# What only Hydra's grammar has: quotes around all or an item of a list, null in one, and brackets.
_HYDRAS = (
    r"""(['"]).*\1$|(['"]).*\2,|.*,(['"]).*\3(?:,|$)"""
    r"""|null,|.*,null(?:,|$)|\[.*\]$|\{.*\}$|\w+\(.*\)$|.*\$\{"""
)


def read(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options by their long names, each followed by its value, and overrides as Hydra's grammar has them.

    Raises:
        RequestError: no such option, no such value of one, options that do not go together, a key that is
            added, or a pattern that matches no finished run.
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
        raise RequestError(f"{options[0]}: goes with --cfg job, which shows the configuration")
    for key in (override.partition("=")[0] for override in overrides):
        if re.match(r"hydra\b", key) and not options:
            raise RequestError(f"{key}: is for a sweep, sstune COMMAND -m")
        if re.match(r"hydra\b(?![/.]launcher)", key) and "--multirun" in options:
            raise RequestError(f"{key}: a sweep takes hydra/launcher and hydra.launcher.* of Hydra's keys")
    return options, overrides


def _option(word: str, following: list[str]) -> list[str]:
    """The option and its value, which is taken from the words that follow if it is not in the same one."""
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
    """The paths that ``text`` names; of several, commas between them."""
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
    """The finished runs that ``runs/finetune/*`` matches, if any; folders that exist are no pattern."""
    whole = Path(pattern).expanduser()
    folder = next(parent for parent in whole.parents if exists(str(parent)))
    search = Path(glob.escape(str(folder)), whole.relative_to(folder))
    return sorted(path for path in glob.glob(str(search)) if (Path(path) / "result.json").exists())


def quoted(text: str) -> str:
    """``text`` as Hydra's grammar has it, in quotes where it would be read as something else than itself."""
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
