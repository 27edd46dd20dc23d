"""The program ``sstune``, also ``python -m sstune``: what holds before anything else is imported."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from sstune.interrupt import GOES_ON


def main() -> int:
    """Run the command line, and return its exit status.

    A signal ends the process at once as long as there is no state to save: while Python imports torch, which
    takes seconds, an exception could be swallowed or come out as another.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _end)
    _open_what_is_closed()
    from sstune.cli import main

    return main()


def _open_what_is_closed() -> None:
    """stdin, stdout and stderr: the next file that is opened would take the place of a closed one."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
            setattr(sys, name, open(descriptor, mode, closefd=False))  # noqa: SIM115


def _end(number: int, frame: FrameType | None) -> None:
    try:
        os.write(2, f"sstune: {GOES_ON}\n".encode())
    finally:
        os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
