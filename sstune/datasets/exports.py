"""The names of :mod:`sstune.datasets` that need torch; importing them registers the datasets."""

from sstune.datasets import lists, small, trees  # noqa: F401
from sstune.datasets.augmentation import Augmentation
from sstune.datasets.batch import Batch
from sstune.datasets.files import ImageFiles, default_workers
from sstune.datasets.loader import Loader, Shard, batches
from sstune.datasets.retrieval import retrieval_splits
from sstune.datasets.single import read_images
from sstune.datasets.sources import SOURCES, load
from sstune.datasets.splits import SPLIT_SEED, Split, Splits, evenly_spaced

__all__ = [
    "SOURCES",
    "SPLIT_SEED",
    "Augmentation",
    "Batch",
    "ImageFiles",
    "Loader",
    "Shard",
    "Split",
    "Splits",
    "batches",
    "default_workers",
    "evenly_spaced",
    "load",
    "read_images",
    "retrieval_splits",
]
