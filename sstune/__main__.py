"""Entry point of ``sstune`` and ``python -m sstune``: set up signals and streams before heavy imports."""

from __future__ import annotations

import os
import signal
import sys
from io import TextIOWrapper
from types import FrameType

from sstune.interrupt import RESUME_HINT, unheard


def main() -> int:
    """Run the command line, and return its exit status.

    Until there is state to save, a signal ends the process at once: an exception raised while torch is being
    imported could be swallowed or replaced by another.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if not unheard(number):
            signal.signal(number, _end)
    _prepare_streams()
    from sstune.cli import main

    return main()


def _prepare_streams() -> None:
    """Open closed standard streams, as the next opened file would take their descriptors."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
            setattr(sys, name, open(descriptor, mode, closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):  # file names may hold characters outside its encoding
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _end(number: int, frame: FrameType | None) -> None:
    try:
        os.write(2, f"sstune: {RESUME_HINT}\n".encode())
    finally:
        os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
