"""Where images come from: sources, their splits, and the loader that feeds them to a network."""

from sstune.datasets import small, trees  # noqa: F401  # they register the sources
from sstune.datasets.archive import earlier_fingerprint, fingerprint
from sstune.datasets.augmentation import Augmentation
from sstune.datasets.batch import Batch
from sstune.datasets.decoding import Preprocessing
from sstune.datasets.files import ImageFiles, default_workers
from sstune.datasets.loader import Loader, Shard, batches
from sstune.datasets.sources import SOURCES, load
from sstune.datasets.splits import SPLIT_SEED, Split, Splits, spread

__all__ = [
    "SOURCES",
    "SPLIT_SEED",
    "Augmentation",
    "Batch",
    "ImageFiles",
    "Loader",
    "Preprocessing",
    "Shard",
    "Split",
    "Splits",
    "batches",
    "default_workers",
    "earlier_fingerprint",
    "fingerprint",
    "load",
    "spread",
]
