"""Sweeps: many runs from one command line, which several processes may share.

All cells are composed and validated before the first one runs. Finished cells are skipped; the others run
one after the other in this process, or by the launcher that ``hydra/launcher=`` names: in parallel on this
machine (joblib), or on a Slurm cluster (submitit_slurm).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from sstune import catalogue, composition, mistakes, schema
from sstune.arguments import quoted
from sstune.commands import execute, strict_failures
from sstune.commands.lineage import resolve_run
from sstune.composition import Cell, Request
from sstune.interrupt import end_with
from sstune.locking import Locked
from sstune.runs import Run
from sstune.schema import RequestError
from sstune.storage import StorageError


class _Failure(NamedTuple):
    """A cell that failed, and its error."""

    cell: Cell
    error: Exception


def sweep(command: str, overrides: Sequence[str]) -> list[str]:
    """Run all unfinished cells; returns a line for each kind of failure.

    Raises:
        RequestError: a cell or the launcher is invalid (nothing has run), or only invalid requests failed.
    """
    launcher = [override for override in overrides if override.startswith("hydra")]
    cells = composition.cells(command, [override for override in overrides if override not in launcher])
    runs = [resolve_run(cell.request) for cell in cells]
    left = [number for number, run in enumerate(runs) if run is None or run.answer() is None]
    print(f"{len(cells)} cells, {len(cells) - len(left)} done already", flush=True)
    if launcher and left:
        errors = _launch(command, _one_of_each_run([(cells[n], runs[n]) for n in left]), launcher)
        unfinished = sum(_finished(cells[n], runs[n]) is None for n in left)
    else:
        errors = [failure.error for failure in _in_turn_twice([cells[n] for n in left])]
        unfinished = len(errors)
    wrong = sum(isinstance(error, RequestError) for error in errors)
    failures = [*_counted(wrong, unfinished - wrong), *_strict_failures(cells, runs)]
    if errors and wrong == len(errors):
        raise RequestError(*failures)
    return failures


def _counted(wrong: int, unfinished: int) -> list[str]:
    """Lines with the number of refused cells, and of cells that failed or that another process runs."""
    lines = []
    if wrong > 0:
        lines.append(f"{wrong} cell{'s were' if wrong > 1 else ' was'} refused")
    if unfinished > 0:
        are, them = ("s are", "them") if unfinished > 1 else (" is", "it")
        lines.append(f"{unfinished} cell{are} not done; run the same command to finish {them}")
    return lines


def _strict_failures(cells: Sequence[Cell], runs: Sequence[Run | None]) -> list[str]:
    """A line for each finished cell that does not satisfy ``audit.strict``, also from earlier commands."""
    strict = [
        run or resolve_run(cell.request)
        for cell, run in zip(cells, runs, strict=True)
        if cell.request.config.audit.strict
    ]
    return strict_failures(run for run in strict if run is not None)


def _finished(cell: Cell, run: Run | None) -> Run | None:
    """The run of a cell if it is done; resolved again if an ancestor was missing before."""
    run = run or resolve_run(cell.request)
    return None if run is None or run.answer() is None else run


def _one_of_each_run(cells: Sequence[tuple[Cell, Run | None]]) -> list[Cell]:
    """One cell for each run: cells that differ only in unused keys (scale under bp) share a run."""
    names = [str(run.directory) if run else f"cell {number}" for number, (_, run) in enumerate(cells)]
    return list(dict(zip(names, (cell for cell, _ in cells), strict=True)).values())


def _in_turn_twice(cells: Sequence[Cell]) -> list[_Failure]:
    """Run cells one after the other, then retry those that another process had locked."""
    failures = _in_turn(cells)
    locked = [failure.cell for failure in failures if isinstance(failure.error, Locked)]
    return [failure for failure in failures if not isinstance(failure.error, Locked)] + _in_turn(locked)


def _in_turn(cells: Sequence[Cell]) -> list[_Failure]:
    """Run cells one after the other, and print failures at once."""
    failures = []
    for cell in cells:
        try:
            carry_out(cell.request)
        except BrokenPipeError:
            raise  # the output is closed: stop the sweep
        except Exception as error:
            failures.append(_Failure(cell, error))
    return failures


def carry_out(request: Request) -> None:
    """Run one cell, and print its error at once, as launchers report errors only after the last cell."""
    try:
        execute(request)
    except BrokenPipeError:
        raise
    except (Locked, RequestError, StorageError) as error:
        print(f"sstune: {error}", file=sys.stderr, flush=True)
        raise
    except Exception as error:
        print(f"sstune: failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        raise


def _launched(command: str, parent: int | None, config: DictConfig) -> None:
    """Run one cell in a process of a launcher; on this machine, the process ends with its parent.

    With one job, joblib starts no process.
    """
    if parent not in (None, os.getpid()):
        end_with(parent)
    overrides = HydraConfig.get().overrides.task
    carry_out(
        Request.of(composition.compose(command, overrides), overrides)
    )  # handles earlier names of keys in presets


def _launch(command: str, cells: Sequence[Cell], settings: Sequence[str]) -> list[Exception]:
    """Run cells by a launcher, and return the errors of those that failed."""
    schema.register()
    try:
        folder = Path(cells[0].request.config.out).expanduser() / ".sweep"  # for the launcher's files
        launcher = _launcher(command, [*settings, f"hydra.sweep.dir={quoted(str(folder))}"])
    except (HydraException, OmegaConfBaseException, ImportError) as error:
        if absent := re.search(r"Could not find 'hydra/launcher/([^']*)'", str(error)):
            raise RequestError(
                f"hydra/launcher: {absent[1]!r} is not installed; joblib needs pip install 'sstune[joblib]', "
                f"submitit_slurm 'sstune[slurm]'"
            ) from error
        raise RequestError(mistakes.explain(error, command)) from error
    ended = launcher.launch([list(cell.overrides) for cell in cells], initial_job_idx=0)
    return [job._return_value for job in ended if job.status is JobStatus.FAILED]


def _launcher(command: str, overrides: Sequence[str]) -> Launcher:
    """The launcher that ``hydra/launcher=`` names, ready to launch cells of ``command``."""
    with hydra.initialize_config_dir(str(catalogue.CONF), version_base="1.3"):
        engine = GlobalHydra.instance().hydra
        assert engine is not None
        config = engine.compose_config(command, list(overrides), run_mode=RunMode.MULTIRUN)
        local = "joblib" in str(config.hydra.launcher._target_)
        task: Callable[[DictConfig], Any] = partial(_launched, command, os.getpid() if local else None)
        return Plugins.instance().instantiate_launcher(
            hydra_context=HydraContext(engine.config_loader, Callbacks(config)),
            task_function=task,
            config=config,
        )
