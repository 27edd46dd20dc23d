"""The datasets one can name: digits (embedded), mnist and cifar10 (torchvision), folder (one's own)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import fields
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from sstune.datasets.archive import is_tree
from sstune.datasets.folder import load_folder
from sstune.datasets.splits import Split, Splits, split_off
from sstune.registry import Registry
from sstune.schema import (
    DatasetConfig,
    DigitsConfig,
    FolderConfig,
    MnistConfig,
    RequestError,
    TorchvisionConfig,
)

Source = Callable[[Any], Splits]

# Functions from a dataset's configuration to its splits.
SOURCES: Registry[Source] = Registry("dataset.name")
SOURCES.register("folder")(load_folder)


def load(config: DatasetConfig) -> Splits:
    """The splits of the configured dataset, the same for every run (see ``SPLIT_SEED``).

    Raises:
        RequestError: an unknown dataset, or one that cannot be read.
    """
    return SOURCES[config.name](config)


@SOURCES.register("digits")
def digits(config: DigitsConfig) -> Splits:
    """scikit-learn's handwritten digits: 1,797 grey 8x8 images, whose values 0..16 are spread over 0..255."""
    from sklearn.datasets import load_digits  # slow to import, and needed here only

    bunch = load_digits()
    images = np.rint(bunch.images * 255 / 16).astype(np.uint8)[:, None]
    whole = Split(torch.from_numpy(images), torch.from_numpy(bunch.target.astype(np.int64)))
    rest, test = split_off(whole, config.test_fraction, "dataset.test_fraction")
    train, val = split_off(rest, config.val_fraction, "dataset.val_fraction")
    return Splits(train, val, test, [str(name) for name in bunch.target_names])


@SOURCES.register("mnist")
def mnist(config: MnistConfig) -> Splits:
    """MNIST, 60,000 + 10,000 grey 28x28 digits: torchvision's files, or the same pixels as an image tree.

    Raises:
        RequestError: neither is there, or what is there has other numbers, sizes or classes.
    """
    root = Path(config.root).expanduser()
    splits = _mnist_tree(config) if is_tree(root) else _mnist_files(config, root)
    found = len(splits.train) + len(splits.val), len(splits.test), splits.shape, splits.n_classes
    if found != (60_000, 10_000, (1, 28, 28), 10):
        raise RequestError(
            "dataset.root: {} is not MNIST: {} + {} images {} in {} classes, expected 60000 + 10000 images "
            "(1, 28, 28) in 10".format(root, *found)
        )
    train, val, test = (_padded(split, config.padding) for split in (splits.train, splits.val, splits.test))
    return Splits(train, val, test, splits.classes)


def _mnist_tree(config: MnistConfig) -> Splits:
    shared = {item.name: getattr(config, item.name) for item in fields(DatasetConfig)}
    return load_folder(FolderConfig(**shared, root=config.root, cache=config.cache))


def _mnist_files(config: MnistConfig, root: Path) -> Splits:
    from torchvision.datasets import MNIST

    try:
        parts = [MNIST(root, train=train, download=config.download) for train in (True, False)]
    except (OSError, RuntimeError, HTTPException) as error:
        files = ", ".join(name for name, _ in MNIST.resources)
        raise RequestError(
            f"dataset.root: MNIST is not in {root} and was not downloaded ({' '.join(str(error).split())}); "
            f"put {files} into {root / 'MNIST' / 'raw'}, or name an archive <split>/<class>/<image>"
        ) from error
    train, test = (Split(part.data[:, None].contiguous(), part.targets.long()) for part in parts)
    train, val = split_off(train, config.val_fraction, "dataset.val_fraction")
    return Splits(train, val, test, [str(digit) for digit in range(10)])


def _padded(split: Split, padding: int) -> Split:
    return Split(F.pad(split.images, [padding] * 4), split.labels)


@SOURCES.register("cifar10")
def cifar10(config: TorchvisionConfig) -> Splits:
    """CIFAR-10 by torchvision, which checks every file's md5; validation images are split off train."""
    root = Path(config.root).expanduser()
    found = _open_cifar10(root)
    if found is None:
        _install_cifar10(root, config.download)
        found = _open_cifar10(root)
    if found is None:
        raise RequestError(f"dataset.root: the CIFAR-10 files in {root} changed while they were read")
    train, test = (
        Split(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for part in found
    )
    train, val = split_off(train, config.val_fraction, "dataset.val_fraction")
    return Splits(train, val, test, list(found[0].classes))


def _open_cifar10(root: Path) -> tuple[Any, Any] | None:
    """torchvision's train and test data sets; None where files are absent or differ from their md5."""
    from torchvision.datasets import CIFAR10

    try:
        return CIFAR10(root, train=True), CIFAR10(root, train=False)
    except RuntimeError:
        return None


def _install_cifar10(root: Path, download: bool) -> None:
    """Unpack the archive that lies in ``root``, or else download it; ``root`` gets all of it or nothing.

    Raises:
        RequestError: neither is possible; says which file to put where.
    """
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity, extract_archive

    archive, target = root / CIFAR10.filename, root / CIFAR10.base_folder
    at_hand = check_integrity(archive, CIFAR10.tgz_md5)
    reason = "dataset.download=false"
    if at_hand or download:
        existing = next(folder for folder in (root, *root.parents) if folder.exists())
        try:
            with tempfile.TemporaryDirectory(dir=existing, prefix=".cifar10-") as stage:
                if at_hand:
                    extract_archive(archive, stage)
                else:
                    CIFAR10(stage, download=True)
                root.mkdir(parents=True, exist_ok=True)
                if target.exists():  # damaged, and in the way
                    target.rename(Path(stage) / "damaged")
                (Path(stage) / CIFAR10.base_folder).rename(target)
                return
        except (OSError, RuntimeError, HTTPException) as error:
            reason = " ".join(str(error).split())
    raise RequestError(
        f"dataset.root: CIFAR-10 is not in {root} and was not downloaded ({reason}); put {CIFAR10.filename}"
        f" (from {CIFAR10.url}, md5 {CIFAR10.tgz_md5}) into {root}"
    )
