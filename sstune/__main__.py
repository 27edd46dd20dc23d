"""The program ``sstune``, also ``python -m sstune``: what holds before anything else is imported."""

from __future__ import annotations

import os
import signal
import sys
from io import TextIOWrapper
from types import FrameType

from sstune.interrupt import RESUME_HINT, unheard


def main() -> int:
    """Run the command line, and return its exit status.

    A signal ends the process at once as long as there is no state to save: while Python imports torch, which
    takes seconds, an exception could be swallowed or come out as another.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if not unheard(number):
            signal.signal(number, _end)
    _prepare_streams()
    from sstune.cli import main

    return main()


def _prepare_streams() -> None:
    """Open those that are closed, as the next file that is opened would take their place."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
            setattr(sys, name, open(descriptor, mode, closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):  # names of files may be of characters that it has not
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _end(number: int, frame: FrameType | None) -> None:
    try:
        os.write(2, f"sstune: {RESUME_HINT}\n".encode())
    finally:
        os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
