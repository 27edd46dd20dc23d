"""The command line: ``sstune train | finetune | attack`` over Hydra, ``sstune report`` and ``retrieve``.

torch is imported only for a valid request. Exit status: 0 done; 1 failed, or ``audit.strict`` is not
satisfied; 2 invalid request; 128 + signal number when stopped by a signal, with the state saved.
"""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import time
import traceback
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout, suppress

from sstune import __version__
from sstune.interrupt import RESUME_HINT, Stopped
from sstune.locking import Locked
from sstune.schema import COMMANDS, GROUPS, RequestError, error_line, nearest
from sstune.storage import BEGAN, StorageError
from sstune.torchrun import is_distributed, is_main_process

_SUMMARY = {
    "train": "train a network from scratch (backpropagation unless rule= says otherwise)",
    "finetune": "fine-tune a network with a learning rule, from init_from=RUN_DIR|FILE",
    "attack": "attack a network with the rule's gradient and with the exact one",
    "report": "turn result rows into CSV and LaTeX tables and a figure",
    "retrieve": "find the database images nearest to yours, with a run of task=hashing",
}

_EXAMPLES = """\
  sstune train                                        BP pre-training on the embedded digits
  sstune finetune -m rule=bp,usf,frsf,brsf            fine-tune by four rules, from that run
  sstune attack -m rule=bp,usf attack=fgsm,pgd        attack the resulting networks
  sstune attack init_from=runs/finetune/RUN attack.eps=[2/255,8/255]
  sstune report runs --out results/digits             tables and figure
  sstune retrieve runs/train/RUN query.jpg --out nearest.png
  sstune finetune --cfg job                           show the configuration, run nothing"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    verbose = "-v" in arguments or os.environ.get("SSTUNE_DEBUG") == "1"
    arguments = [argument for argument in arguments if argument != "-v"]
    os.environ[BEGAN] = repr(time.time())
    try:
        with nullcontext() if is_main_process() else redirect_stdout(None):
            status = _dispatch(arguments)
            print(end="", flush=True)
            return status
    except RequestError as error:
        if verbose:
            traceback.print_exc()
        if not is_main_process():
            time.sleep(10)  # rank 0 prints the error, and torchrun ends the other processes
        _say(*error.problems)
        return 2
    except Stopped as stopped:
        if is_main_process():
            _say(RESUME_HINT)
        return int(str(stopped.code))
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except Locked as error:
        _say(str(error))
        return 1
    except Exception as error:
        if verbose:
            traceback.print_exc()
        return _failed(error)
    finally:
        os.environ.pop(BEGAN, None)


def _failed(error: Exception) -> int:
    try:
        print(end="", flush=True)
    except OSError:  # stdout is broken; the interpreter would flush it again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):  # the status of a program ended by SIGPIPE
        return 128 + signal.SIGPIPE
    _say(str(error) if isinstance(error, StorageError) else f"failed: {type(error).__name__}: {error}")
    return 1


def _say(*problems: str) -> None:
    with suppress(OSError):  # the terminal may be closed
        for problem in problems:
            print(error_line(problem), file=sys.stderr, flush=True)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0 if arguments else 2
    command, *rest = arguments
    if command == "--version":
        print(f"sstune {__version__}")
        return 0
    if command in ("-m", "--multirun"):
        raise RequestError(f"the command must come first: sstune COMMAND {' '.join(arguments)}")
    if command == "report":
        from sstune.commands import report

        return report.run(rest)
    if command == "retrieve":
        from sstune.commands import retrieve

        return retrieve.run(rest)
    if command not in COMMANDS:
        raise RequestError(f"unknown command {command!r}, {nearest(command, _SUMMARY)}")
    if {"-h", "--help"} & set(rest):
        print(help_text())
        return 0
    return _run(command, rest)


def _run(command: str, arguments: list[str]) -> int:
    from sstune import composition
    from sstune.arguments import read
    from sstune.commands import execute, strict_failures

    options, overrides = read(arguments)
    if is_distributed() and command == "attack":
        raise RequestError("attack: runs in one process; torchrun is for train and finetune")
    if is_distributed() and "--multirun" in options:
        raise RequestError("-m: a sweep cannot run under torchrun, whose processes share one run")
    try:
        if "--multirun" in options:
            from sstune.sweeps import sweep

            errors = sweep(command, overrides)
        elif options:
            composition.request(command, [each for each in overrides if not each.startswith("hydra")])
            _hydra_main(command, [*overrides, *options])
            errors = []
        else:
            errors = strict_failures([execute(composition.request(command, overrides))])
    except BrokenPipeError:
        _say("stopped because the output was closed; run the same command to resume")
        raise
    _say(*errors)
    return 1 if errors else 0


def _hydra_main(command: str, arguments: list[str]) -> None:
    """Let Hydra print a configuration (``--cfg``, ``--info``)."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

    from sstune import catalogue, mistakes, schema

    def task(config: DictConfig) -> None:
        """Never called: with these options, Hydra only prints."""

    schema.register()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises exceptions instead of exiting with status 1
    program, sys.argv = sys.argv, [f"sstune {command}", *arguments]
    try:
        hydra.main(version_base="1.3", config_path=str(catalogue.CONF), config_name=command)(task)()
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: rule=null
        raise RequestError(mistakes.explain(error, command)) from error
    finally:
        sys.argv = program


def help_text() -> str:
    """Commands, config groups with their options, and examples."""
    from sstune.catalogue import options

    commands = "\n".join(f"  {name:<10}{text}" for name, text in _SUMMARY.items())
    groups = "\n".join(
        textwrap.fill(
            f"{group + '=':<12}{' | '.join(options(group))}",
            width=108,
            initial_indent="  ",
            subsequent_indent=" " * 14,
        )
        for group in [*GROUPS, "experiment"]
    )
    return f"""\
sstune {__version__}: fine-tune backprop-trained vision networks with sign-symmetry rules, and attack them

usage: sstune COMMAND [-m] [KEY=VALUE ...]

commands:
{commands}

groups:
{groups}

keys: epochs, batch_size, seed, device, precision, out, force, init_from, and GROUP.KEY; --cfg job shows all

options:
  -m          sweep: KEY=A,B,C runs one cell for each combination
  --cfg job   show the composed configuration and stop
  --version   print the version
  -v          show the traceback of an error (also SSTUNE_DEBUG=1)

examples:
{_EXAMPLES}"""
