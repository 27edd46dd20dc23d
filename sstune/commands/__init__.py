"""The commands: each reads from top to bottom like a paper's method section."""

from collections.abc import Iterable
from importlib import import_module

from sstune.runs import Run
from sstune.schema import RunConfig


def planned(config: RunConfig, asked: set[str]) -> Run | None:
    """The run that :func:`execute` would make; None while one that it starts from has yet to be made."""
    from sstune.commands import source

    return source.planned(config, asked)


def execute(config: RunConfig, asked: set[str]) -> Run:
    """Carry out a validated configuration.

    Args:
        asked: top-level keys that the command line asks for, in contrast to defaults.
    """
    module = import_module(f"sstune.commands.{config.command}")  # loads only what this command needs
    run: Run = getattr(module, config.command)(config, asked)
    return run


def objections(runs: Iterable[Run]) -> list[str]:
    """A line for each finished run that is not what its configuration insists on (``audit.strict``)."""
    strict = [run for run in runs if run.config.audit.strict]
    if not strict:
        return []
    from sstune.commands.verdict import objection

    return [line for run in strict if (line := objection(run))]
