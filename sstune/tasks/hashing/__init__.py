"""Image retrieval by binary codes (deep hashing)."""

from sstune.tasks.hashing.task import Hashing

__all__ = ["Hashing"]
