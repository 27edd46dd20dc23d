"""Where images come from: sources, their splits, and the loader that feeds them to a network."""

from sstune.datasets.archive import fingerprint
from sstune.datasets.loader import Loader, batches
from sstune.datasets.sources import SOURCES, load
from sstune.datasets.splits import SPLIT_SEED, Split, Splits

__all__ = ["SOURCES", "SPLIT_SEED", "Loader", "Split", "Splits", "batches", "fingerprint", "load"]
