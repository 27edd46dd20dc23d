"""Where images come from: sources, their splits, and the loader that feeds them to a network.

Only :func:`fingerprint` is imported with the package: what a run's identity needs works without torch.
The other names are imported when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sstune.datasets.archive import fingerprint

if TYPE_CHECKING:
    from sstune.datasets.loader import Loader, batches, seed_from
    from sstune.datasets.sources import load, source
    from sstune.datasets.splits import Split, Splits

__all__ = ["Loader", "Split", "Splits", "batches", "fingerprint", "load", "seed_from", "source"]

_MODULES = {
    "Loader": "loader",
    "batches": "loader",
    "seed_from": "loader",
    "load": "sources",
    "source": "sources",
    "Split": "splits",
    "Splits": "splits",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
