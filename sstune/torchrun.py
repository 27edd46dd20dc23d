"""Rank and number of processes under torchrun, from its environment variables. Imports no torch."""

from __future__ import annotations

import os


def is_distributed() -> bool:
    """Whether several processes share one run."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def is_main_process() -> bool:
    """Whether this is the process of rank 0, which prints."""
    return not is_distributed() or os.environ.get("RANK", "0") == "0"
