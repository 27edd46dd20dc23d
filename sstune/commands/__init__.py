"""The commands, ``train``, ``finetune``, ``attack``, ``report``, ``retrieve``; imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING

from sstune.runs import Run
from sstune.schema import traits_of
from sstune.torchrun import is_distributed

if TYPE_CHECKING:
    from sstune.composition import Request


def execute(request: Request) -> Run:
    """Carry out a validated request, and return its finished run.

    For a finished run, its row is enough and torch is not imported.
    """
    run = _done(request)
    if run is None:
        module = import_module(f"sstune.commands.{request.config.command}")
        run = getattr(module, request.config.command)(request)
    assert isinstance(run, Run)
    if run.config.command == "attack" and traits_of(run.config.attack.name).suite:
        from sstune.commands.verdict import present

        present(run)
    return run


def _done(request: Request) -> Run | None:
    """The run of a request if it is done (then its directory is printed), otherwise None.

    Always None under torchrun, where the processes have to agree, and with ``model.factory``, whose network
    would be created twice.
    """
    from sstune.commands.lineage import resolve_runs

    if is_distributed() or request.config.model.factory is not None:
        return None
    runs = resolve_runs(request)
    if not runs or runs[-1].answer() is None:
        return None
    for run in runs:
        print(f"{run.directory}: done already", flush=True)
    return runs[-1]


def strict_failures(runs: Iterable[Run]) -> list[str]:
    """A line for each finished run whose audit does not satisfy ``audit.strict``."""
    strict = [run for run in runs if run.config.audit.strict]
    if not strict:
        return []
    from sstune.commands.verdict import strict_failure

    return [line for run in strict if (line := strict_failure(run))]
