"""Config group ``dataset``: where images come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from sstune.schema.choices import Interpolation
from sstune.schema.keys import Identity, Range, Role, key, redefined

_ROOT = "Directory of torchvision's files; downloads go here."
_TREE = "an image tree SPLIT/CLASS/IMAGE: a directory, or a .tar, .tar.gz or .tar.xz of one"
_DOWNLOAD = "Whether torchvision may download files that are not in root."
_CACHE = "Directory for decoded images, and for the list of corrupt images."


@dataclass
class DatasetConfig:
    """Images with their classes, in three splits: train, validation and test."""

    name: str = key(MISSING, "Name of the dataset; follows from dataset=OPTION.")
    label: str = key(
        MISSING, "Name of the data in tables and run directories; different images need a different name."
    )
    mean: list[float] = key(
        MISSING,
        "Mean of each channel, by which [0,1] images are normalised inside the network.",
        within=Range(-1e3, 1e3),
        role=Role.NORMALIZATION,
    )
    std: list[float] = key(
        MISSING,
        "Standard deviation of each channel, by which [0,1] images are normalised inside the network.",
        within=Range(0, 1e3, above=True),
        role=Role.NORMALIZATION,
    )
    crop_padding: int = key(
        0,
        "Black pixels added on each side of a training image before a random crop to its original size.",
        within=Range(0, 1024),
        role=Role.AUGMENTATION,
    )
    crop_scale: float | None = key(
        None,
        "Smallest share of a training image's area in a random resized crop; null: no such crop.",
        within=Range(0, 1, above=True),
        role=Role.AUGMENTATION,
        identity=Identity.UNLESS_DEFAULT,
    )
    flip: bool = key(False, "Mirror each training image with probability 0.5.", role=Role.AUGMENTATION)
    transforms: dict[str, Any] = key(
        {},
        "Further transforms of training images, from torchvision.transforms.v2, in this order: name -> "
        "arguments, e.g. {RandAugment: {num_ops: 2}}.",
        role=Role.AUGMENTATION,
        identity=Identity.UNLESS_DEFAULT,
    )
    cutout: int = key(
        0,
        "Side, in pixels, of a square that is blanked at a random place of each training image; 0: none.",
        within=Range(0, 4096),
        role=Role.AUGMENTATION,
        identity=Identity.UNLESS_DEFAULT,
    )
    val_fraction: float = key(
        0.1,
        "Share of the training images held out for validation, if the dataset has no validation split.",
        within=Range(0, 0.9, above=True),
        role=Role.TRAINING,
    )
    train_n: int | None = key(
        None,
        "Number of training images to use, stratified by class; null: all.",
        within=Range(2),
        role=Role.SUBSET,
        identity=Identity.UNLESS_DEFAULT,
    )
    shots: int | None = key(
        None,
        "Number of training images to use per class; null: all.",
        within=Range(1),
        role=Role.SUBSET,
        identity=Identity.UNLESS_DEFAULT,
    )
    subset_seed: int = key(
        0,
        "Seed of the selection of train_n or shots images.",
        within=Range(0, 2**32 - 1),
        role=Role.SUBSET,
    )


@dataclass
class DigitsConfig(DatasetConfig):
    """scikit-learn's handwritten digits."""

    test_fraction: float = key(
        0.2, "Share of the images that is the test split.", within=Range(0, 0.9, above=True)
    )


@dataclass
class TorchvisionConfig(DatasetConfig):
    """A dataset of small images that torchvision downloads."""

    root: str = key("data", _ROOT, identity=Identity.NEVER)
    download: bool = key(True, _DOWNLOAD, identity=Identity.NEVER)


@dataclass
class FolderConfig(DatasetConfig):
    """An ImageFolder tree ``SPLIT/CLASS/IMAGE``.

    Images are decoded once and held in memory, or read from disk by worker processes (``stream``). The
    shorter side is resized to ``image_size / crop_pct``, then the centre is cropped.
    """

    root: str = key(MISSING, f"Path of {_TREE}.", identity=Identity.NEVER)
    train_split: str = key("train", "Folder of the training images.")
    val_split: str | None = key(None, "Folder of the validation images; null: val_fraction of train.")
    test_split: str = key("test", "Folder of the test images.")
    image_size: int | None = key(
        None,
        "Height and width of the images, in pixels; null: those of the files, which must be equal; required "
        "with stream.",
        within=Range(1, 4096),
    )
    crop_pct: float = key(
        1.0,
        "The shorter side is resized to image_size / crop_pct before the centre is cropped.",
        within=Range(0, 1, above=True),
        identity=Identity.UNLESS_DEFAULT,
    )
    interpolation: Interpolation = key(
        Interpolation.bilinear, "How images are resized.", identity=Identity.UNLESS_DEFAULT
    )
    stream: bool = key(
        False,
        "Read image files from disk in every epoch, for datasets larger than memory.",
        identity=Identity.UNLESS_DEFAULT,
    )
    skip_corrupt: bool = key(
        False,
        "Skip and count images that cannot be decoded, instead of stopping; reads every image once.",
        identity=Identity.UNLESS_DEFAULT,
    )
    cache: str = key("~/.cache/sstune", _CACHE, identity=Identity.NEVER)


@dataclass
class DownloadedFolderConfig(FolderConfig):
    """An image tree that torchvision can download into ``root``."""

    root: str = key("data", f"Directory of torchvision's files, or path of {_TREE}.", identity=Identity.NEVER)
    download: bool = key(True, _DOWNLOAD, identity=Identity.NEVER)


@dataclass
class ListConfig(DatasetConfig):
    """Images in list files: in each line an image's path, then 0 or 1 for each class, separated by blanks.

    A retrieval benchmark with a database; images are read from disk by worker processes.
    """

    root: str = key(
        MISSING, "Directory of the list files, and of the images in them.", identity=Identity.NEVER
    )
    database_file: str = key("database.txt", "List of the images that are searched.")
    train_file: str = key("train.txt", "List of the training images.")
    test_file: str = key("test.txt", "List of the test images, in retrieval the queries.")
    val_file: str | None = key(
        None,
        "List of the validation images; null: val_fraction of train, in retrieval split.n_val images of the "
        "database.",
    )
    classes_file: str | None = key(
        None, "Names of the classes, one in each line; null: their numbers from 0."
    )
    image_size: int | None = redefined(FolderConfig, "image_size", 224)
    crop_pct: float = redefined(FolderConfig, "crop_pct", 1.0)
    interpolation: Interpolation = redefined(FolderConfig, "interpolation", Interpolation.bilinear)
    skip_corrupt: bool = redefined(FolderConfig, "skip_corrupt", False)
    cache: str = key("~/.cache/sstune", _CACHE, identity=Identity.NEVER)


@dataclass
class MnistConfig(DatasetConfig):
    """28x28 grey images from torchvision's files, or from an image tree of the same images."""

    root: str = key("data", f"Directory of torchvision's files, or path of {_TREE}.", identity=Identity.NEVER)
    download: bool = key(True, _DOWNLOAD, identity=Identity.NEVER)
    padding: int = key(
        0, "Black pixels added on each side of every image; 2 gives 32x32.", within=Range(0, 1024)
    )
    cache: str = key("~/.cache/sstune", _CACHE, identity=Identity.NEVER)
