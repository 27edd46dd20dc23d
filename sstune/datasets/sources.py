"""The datasets one can name, and how one is loaded: read, seen as the backbone expects, cut to a subset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sstune.datasets.augmentation import build_transforms, check_transforms
from sstune.datasets.decoding import View
from sstune.datasets.files import ImageFiles
from sstune.datasets.splits import Split, Splits, subset
from sstune.preprocessing import Preprocessing
from sstune.registry import Registry
from sstune.schema import DatasetConfig, RequestError

Source = Callable[[Any], Splits]

# Functions from a dataset's configuration to its splits.
SOURCES: Registry[Source] = Registry("dataset.name")


def load(
    config: DatasetConfig, preprocessing: Preprocessing | None = None, workers: int | None = None
) -> Splits:
    """The splits of the configured dataset, the same for every run (see ``SPLIT_SEED``).

    A subset is drawn of the training images that are left when validation was split off.

    Args:
        preprocessing: what a pre-trained backbone expects; streamed images are seen so, whatever the
            configuration says of their size. Images in memory are not changed by it.
        workers: processes that read streamed images; by default see :func:`default_workers`.

    Raises:
        RequestError: an unknown dataset, one that cannot be read, transforms that cannot be applied, a subset
            larger than what there is, or streamed images without a configured size.
    """
    source = SOURCES[config.name]
    if config.transforms:
        build_transforms(config.transforms)  # reading may take minutes, a misspelt name is known at once
    splits = source(config)
    train, val, test = (
        _with_view(split, preprocessing, workers) for split in (splits.train, splits.val, splits.test)
    )
    train = subset(train, config.train_n, config.shots, config.subset_seed, splits.classes)
    splits = replace(splits, train=train, val=val, test=test)
    check_transforms(config.transforms, splits.shape)
    return splits


def _with_view(split: Split, preprocessing: Preprocessing | None, workers: int | None) -> Split:
    files = split.images
    if not isinstance(files, ImageFiles):
        return split
    view = files.view if preprocessing is None else View.of(preprocessing)
    if view is None:
        raise RequestError(
            "dataset.image_size: must be set, for images that are streamed are brought to one size"
        )
    return Split(
        replace(files, view=view, workers=files.workers if workers is None else workers), split.targets
    )
