"""Datasets of small images, held in memory: digits, MNIST and Fashion-MNIST, CIFAR, SVHN."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sstune.datasets.archive import is_tree
from sstune.datasets.folder import load_folder
from sstune.datasets.packages import Damaged, Package, Published, check_md5
from sstune.datasets.sources import SOURCES
from sstune.datasets.splits import Split, Splits, split_off
from sstune.schema import (
    DatasetConfig,
    DigitsConfig,
    FolderConfig,
    MnistConfig,
    RequestError,
    TorchvisionConfig,
)

_MNIST_IMAGES = {"train": 60_000, "t10k": 10_000}
_IDX_IMAGES, _IDX_LABELS = (
    b"\0\0\x08\x03",
    b"\0\0\x08\x01",
)  # idx headers: uint8 in three dimensions, and in one
_DIGITS = [str(digit) for digit in range(10)]


@SOURCES.register("digits")
def digits(config: DigitsConfig) -> Splits:
    """scikit-learn's handwritten digits: 1,797 grey 8x8 images, values 0..16 scaled to 0..255."""
    from sklearn.datasets import load_digits  # slow to import

    bunch = load_digits()
    images = np.rint(bunch.images * 255 / 16).astype(np.uint8)[:, None]
    whole = Split(torch.from_numpy(images), torch.from_numpy(bunch.target.astype(np.int64)))
    rest, test = split_off(whole, config.test_fraction, "dataset.test_fraction")
    return _validated(rest, test, [str(name) for name in bunch.target_names], config)


@SOURCES.register("cifar10", "cifar100")
def cifar(config: TorchvisionConfig) -> Splits:
    """CIFAR-10 or CIFAR-100 (50,000 + 10,000 RGB 32x32 images) from torchvision, which checks every md5."""
    from torchvision.datasets import CIFAR10, CIFAR100

    kind, name = {"cifar10": (CIFAR10, "CIFAR-10"), "cifar100": (CIFAR100, "CIFAR-100")}[config.name]
    package = Package(
        name,
        (Published(kind.filename, kind.url, kind.tgz_md5),),
        "",
        (kind.base_folder,),
        lambda root, download: _cifar_in(root, kind, download),
    )
    parts = package.opened(Path(config.root).expanduser(), config.download)
    train, test = (
        Split(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for part in parts
    )
    return _validated(train, test, list(parts[0].classes), config)


def _cifar_in(root: Path, kind: Any, download: bool) -> list[Any]:
    try:
        return [kind(root, train=train, download=download) for train in (True, False)]
    except RuntimeError:  # does not say which file is damaged
        meta = (kind.meta["filename"], kind.meta["md5"])
        check_md5(root / kind.base_folder, [*map(tuple, kind.train_list + kind.test_list), meta])
        raise


@SOURCES.register("svhn")
def svhn(config: TorchvisionConfig) -> Splits:
    """SVHN from torchvision: 73,257 + 26,032 RGB 32x32 digits, without the extra split."""
    from torchvision.datasets import SVHN

    files = [SVHN.split_list[part] for part in ("train", "test")]
    package = Package(
        "SVHN",
        tuple(Published(name, url, md5) for url, name, md5 in files),
        "",
        tuple(name for _, name, _ in files),
        lambda root, download: [SVHN(root, part, download=download) for part in ("train", "test")],
    )
    parts = package.opened(Path(config.root).expanduser(), config.download)
    train, test = (
        Split(torch.from_numpy(np.ascontiguousarray(part.data)), torch.from_numpy(part.labels))
        for part in parts
    )
    return _validated(train, test, _DIGITS, config)


@SOURCES.register("mnist", "fashion_mnist")
def mnist(config: MnistConfig) -> Splits:
    """MNIST or Fashion-MNIST, 60,000 + 10,000 grey 28x28 images: torchvision's files or an image tree.

    Raises:
        RequestError: both are absent, or numbers, sizes or classes differ from the published ones.
    """
    from torchvision.datasets import MNIST, FashionMNIST

    root = Path(config.root).expanduser()
    kind, name = {"mnist": (MNIST, "MNIST"), "fashion_mnist": (FashionMNIST, "Fashion-MNIST")}[config.name]
    if is_tree(root):
        splits = load_folder(_as_folder(config))
    else:
        package = Package(
            name,
            tuple(Published(file, kind.mirrors[-1] + file, md5) for file, md5 in kind.resources),
            f"{kind.__name__}/raw",
            (kind.__name__,),
            lambda root, download: _mnist_in(root, kind, download),
        )
        parts = package.opened(root, config.download)
        train, test = (Split(part.data[:, None].contiguous(), part.targets.long()) for part in parts)
        splits = _validated(train, test, _DIGITS if kind is MNIST else list(kind.classes), config)
    found = len(splits.train) + len(splits.val), len(splits.test), splits.shape, splits.n_classes
    if found != (60_000, 10_000, (1, 28, 28), 10):
        raise RequestError(
            "dataset.root: {} is not {}: {} + {} images {} in {} classes, expected 60000 + 10000 images "
            "(1, 28, 28) in 10".format(root, name, *found)
        )
    train, val, test = (_padded(split, config.padding) for split in (splits.train, splits.val, splits.test))
    return Splits(train, val, test, splits.classes)


def _mnist_in(root: Path, kind: Any, download: bool) -> list[Any]:
    for part, n in _MNIST_IMAGES.items() if not download else ():
        for what, head, each in (("images-idx3", _IDX_IMAGES, 28 * 28), ("labels-idx1", _IDX_LABELS, 1)):
            file = root / kind.__name__ / "raw" / f"{part}-{what}-ubyte"
            if file.is_file():
                _check_idx(file, head + n.to_bytes(4, "big"), n * each, largest=9 if each == 1 else 255)
    return [kind(root, train=train, download=download) for train in (True, False)]


def _check_idx(file: Path, head: bytes, n_bytes: int, largest: int) -> None:
    """Check an unpacked file of MNIST, which torchvision reads unchecked; its md5 is not published.

    Raises:
        Damaged: the file does not begin with ``head``, does not have ``n_bytes`` after its header, or one of
            them is greater than ``largest``.
    """
    content = file.read_bytes()
    header = 16 if head.startswith(_IDX_IMAGES) else 8
    if not content.startswith(head):
        raise Damaged(file.name, "it does not begin with the expected header")
    if len(content) != header + n_bytes:
        raise Damaged(file.name, f"it has {len(content):,} bytes, not {header + n_bytes:,}")
    if largest < 255 and max(content[header:]) > largest:
        raise Damaged(file.name, f"it holds the label {max(content[header:])}")


def _as_folder(config: MnistConfig) -> FolderConfig:
    shared: dict[str, Any] = {item.name: getattr(config, item.name) for item in fields(DatasetConfig)}
    return FolderConfig(**shared, root=config.root, cache=config.cache)


def _padded(split: Split, padding: int) -> Split:
    assert isinstance(split.images, Tensor)
    return Split(F.pad(split.images, [padding] * 4), split.targets)


def _validated(train: Split, test: Split, classes: list[str], config: DatasetConfig) -> Splits:
    """The splits of a dataset without a validation split: a part of train is held out."""
    train, val = split_off(train, config.val_fraction, "dataset.val_fraction")
    return Splits(train, val, test, classes)
