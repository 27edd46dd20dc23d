"""Sweeps: many runs from one line, each made at most once however many processes work on them.

Every cell is composed and validated before the first one runs. Finished cells are answered from their rows;
what is left runs here one after the other, or goes to the launcher that ``hydra/launcher=`` names: several at
once on this machine (joblib), or on a Slurm cluster (submitit_slurm).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import hydra
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from sstune import catalogue, composition, mistakes, schema
from sstune.composition import Cell
from sstune.interrupt import end_with
from sstune.locking import Locked
from sstune.schema import RequestError, RunConfig
from sstune.storage import StorageError


def sweep(command: str, overrides: Sequence[str]) -> list[str]:
    """Run every cell that is not done; returns what there is to complain of, a line each.

    Raises:
        RequestError: a cell is wrong, or the launcher is, and nothing has run; or all that failed was wrong.
    """
    launcher = [override for override in overrides if override.startswith("hydra")]
    cells = composition.cells(command, [override for override in overrides if override not in launcher])
    left = _not_done(cells)
    print(f"{len(cells)} cells, {len(cells) - len(left)} done already", flush=True)
    if launcher and left:
        errors = _launch(command, _different(left), launcher)
        unfinished = len(_not_done(left))
    else:
        failed = _in_turn(left)
        locked = [cell for cell, error in failed if isinstance(error, Locked)]
        errors = [error for _, error in failed if not isinstance(error, Locked)]
        errors += [error for _, error in _in_turn(locked)]  # the others may be done by now
        unfinished = len(errors)
    complaints = [*_unfinished(unfinished), *_objections(cells)]
    if errors and all(isinstance(error, RequestError) for error in errors):
        raise RequestError("\n".join(complaints))
    return complaints


def _unfinished(n: int) -> list[str]:
    """``n`` cells failed, or are another process's."""
    if n > 1:
        return [f"{n} cells are not done; the same line runs them"]
    return ["1 cell is not done; the same line runs it"] if n else []


def _objections(cells: Sequence[Cell]) -> list[str]:
    """Also to runs that were done before."""
    from sstune.commands import objections, planned

    runs = [planned(cell.config, cell.asked) for cell in cells if cell.config.audit.strict]
    return objections(run for run in runs if run is not None)


def _not_done(cells: Sequence[Cell]) -> list[Cell]:
    """The cells whose runs have no row yet; with ``force``, none that was made for it."""
    from sstune.commands import planned  # loads torch

    left = []
    for cell in cells:
        run = planned(cell.config, cell.asked)
        if run is None or run.answer() is None:
            left.append(cell)
    return left


def _different(cells: Sequence[Cell]) -> list[Cell]:
    """One cell of each run: a scale, for example, makes no other run under bp."""
    from sstune.commands import planned

    runs = [planned(cell.config, cell.asked) for cell in cells]
    names = [str(run.directory) if run else f"cell {number}" for number, run in enumerate(runs)]
    return list(dict(zip(names, cells, strict=True)).values())


def _in_turn(cells: Sequence[Cell]) -> list[tuple[Cell, Exception]]:
    """Run cells one after the other; those that failed, and why, which is said at once."""
    failed = []
    for cell in cells:
        try:
            carry_out(cell.config, cell.asked)
        except BrokenPipeError:
            raise  # nobody reads what the others say
        except Exception as error:
            failed.append((cell, error))
    return failed


def carry_out(config: RunConfig, asked: set[str]) -> None:
    """Run one cell; says at once what went wrong, which a launcher would show only after the last cell."""
    from sstune.commands import execute

    try:
        execute(config, asked)
    except BrokenPipeError:
        raise
    except (Locked, RequestError, StorageError) as error:
        print(f"sstune: {error}", file=sys.stderr, flush=True)
        raise
    except Exception as error:
        print(f"sstune: failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        raise


def _launched(command: str, parent: int | None, config: DictConfig) -> None:
    """One cell in a process that a launcher started; on this machine, one that ends with its parent.

    With one job, joblib starts none, and the cell is the sweeper's own.
    """
    if parent not in (None, os.getpid()):
        end_with(parent)
    overrides = HydraConfig.get().overrides.task
    composed = composition.compose(command, overrides)
    carry_out(composed, composition.asked(command, composed, overrides))


def _launch(command: str, cells: Sequence[Cell], settings: Sequence[str]) -> list[Exception]:
    """Run cells by a launcher; the errors of those that failed."""
    schema.register()
    try:
        with hydra.initialize_config_dir(str(catalogue.CONF), version_base="1.3"):
            engine = GlobalHydra.instance().hydra
            assert engine is not None
            overrides = [*settings, *cells[0].overrides]  # for out=, below which a launcher keeps its files
            config = engine.compose_config(command, overrides, run_mode=RunMode.MULTIRUN)
            local = "joblib" in str(config.hydra.launcher._target_)
            task: Callable[[DictConfig], Any] = partial(_launched, command, os.getpid() if local else None)
            launcher = Plugins.instance().instantiate_launcher(
                hydra_context=HydraContext(engine.config_loader, Callbacks(config)),
                task_function=task,
                config=config,
            )
    except (HydraException, OmegaConfBaseException, ImportError) as error:
        if absent := re.search(r"Could not find 'hydra/launcher/([^']*)'", str(error)):
            raise RequestError(
                f"hydra/launcher: there is no {absent[1]!r} here; joblib needs pip install 'sstune[joblib]', "
                f"submitit_slurm 'sstune[slurm]'"
            ) from error
        raise RequestError(mistakes.explain(error, command)) from error
    ended = launcher.launch([list(cell.overrides) for cell in cells], initial_job_idx=0)
    return [job._return_value for job in ended if job.status is JobStatus.FAILED]
