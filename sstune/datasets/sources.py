"""The registry of datasets, and loading: reading, preprocessing, subsets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sstune.datasets.augmentation import build_transforms, check_transforms
from sstune.datasets.decoding import View
from sstune.datasets.files import ImageFiles
from sstune.datasets.retrieval import retrieval_splits
from sstune.datasets.splits import Split, Splits, split_off_positions, subset_positions
from sstune.preprocessing import Preprocessing
from sstune.registry import Registry
from sstune.schema import DatasetConfig, RequestError, SplitConfig

Source = Callable[[Any], Splits]

# Functions from a dataset's configuration to its splits.
SOURCES: Registry[Source] = Registry("dataset.name")


def load(
    config: DatasetConfig,
    preprocessing: Preprocessing | None = None,
    workers: int | None = None,
    split: SplitConfig | None = None,
) -> Splits:
    """The splits of the configured dataset, the same for every run (see ``SPLIT_SEED``).

    A training subset is drawn after the validation images were split off; in retrieval, of the protocol's
    training images, and the database stays whole.

    Args:
        preprocessing: of a pre-trained backbone. It replaces the size and interpolation in ``config`` for
            streamed images; images in memory are not affected.
        workers: processes that read streamed images; default: :func:`default_workers`.
        split: for retrieval, how queries and database are drawn; see :func:`retrieval_splits`.

    Raises:
        RequestError: the dataset is unknown or cannot be read, transforms cannot be applied, the subset is
            larger than the training split, streamed images have no configured size, or a class has too few
            images for ``split``.
    """
    source = SOURCES[config.name]
    if config.transforms:
        build_transforms(
            config.transforms
        )  # fail on a misspelt name before images are read, which may take minutes
    splits = source(config)
    viewed = {name: _with_view(part, preprocessing, workers) for name, part in splits.named.items()}
    splits = replace(splits, **viewed)  # type: ignore[arg-type]
    if split is not None:
        splits = retrieval_splits(splits, split)
    elif not len(splits.val):
        splits = _with_validation(splits, config)
    splits = _with_subset(splits, config)
    check_transforms(config.transforms, splits.shape)
    return splits


def _with_validation(splits: Splits, config: DatasetConfig) -> Splits:
    """The splits of a dataset whose validation split is empty: a part of train is held out."""
    rest, held = split_off_positions(splits.train.strata, config.val_fraction, "dataset.val_fraction")
    train, indices = splits.train, splits.indices
    if indices is not None:
        indices = {**indices, "train": indices["train"][rest], "val": indices["train"][held]}
    return replace(splits, train=train.take(rest), val=train.take(held), indices=indices)


def _with_subset(splits: Splits, config: DatasetConfig) -> Splits:
    chosen = subset_positions(splits.train, config.train_n, config.shots, config.subset_seed, splits.classes)
    if chosen is None:
        return splits
    indices = splits.indices and {**splits.indices, "train": splits.indices["train"][chosen]}
    return replace(splits, train=splits.train.take(chosen), indices=indices)


def _with_view(split: Split, preprocessing: Preprocessing | None, workers: int | None) -> Split:
    files = split.images
    if not isinstance(files, ImageFiles):
        return split
    view = files.view if preprocessing is None else View.of(preprocessing)
    if view is None:
        raise RequestError("dataset.image_size: must be set, for streamed images are resized to one size")
    return Split(
        replace(files, view=view, workers=files.workers if workers is None else workers), split.targets
    )
