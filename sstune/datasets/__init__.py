"""Datasets: sources, splits, augmentation and loaders.

Torch is imported when a name other than the fingerprints is first used (PEP 562): a run's identity needs the
fingerprints only.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sstune.datasets.archive import earlier_fingerprint, fingerprint

if TYPE_CHECKING:
    from sstune.datasets.exports import *  # noqa: F403

__all__ = ["earlier_fingerprint", "fingerprint"]


def __getattr__(name: str) -> Any:
    """A name of :mod:`sstune.datasets.exports`."""
    exports = import_module("sstune.datasets.exports")
    if name in exports.__all__:
        return getattr(exports, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
