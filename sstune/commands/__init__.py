"""The commands: each reads from top to bottom like a paper's method section."""

from importlib import import_module

from sstune.runs import Run
from sstune.schema import RunConfig


def execute(config: RunConfig, asked: set[str]) -> Run:
    """Carry out a validated configuration.

    Args:
        asked: top-level keys that the command line asks for, in contrast to defaults.
    """
    module = import_module(f"sstune.commands.{config.command}")  # loads only what this command needs
    run: Run = getattr(module, config.command)(config, asked)
    return run
