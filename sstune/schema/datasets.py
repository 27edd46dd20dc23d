"""Config group ``dataset``: where images come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from sstune.schema.choices import Interpolation


@dataclass
class DatasetConfig:
    """Where images come from; ``label`` is what tables call them, ``mean``/``std`` normalise [0,1] inputs.

    Training images are cropped (out of a frame of ``crop_padding`` zeros, or to a random share of the area
    from ``crop_scale`` to 1, resized), mirrored, put through ``transforms`` (torchvision v2, by name, with
    arguments: ``{RandAugment: {num_ops: 2}}``) and have a square of ``cutout`` pixels blanked. ``train_n``
    of them are used, or ``shots`` of each class, as ``subset_seed`` draws them (null: all).
    """

    name: str = MISSING
    label: str = MISSING
    mean: list[float] = MISSING
    std: list[float] = MISSING
    crop_padding: int = 0
    crop_scale: float | None = None
    flip: bool = False
    transforms: dict[str, Any] = field(default_factory=dict)
    cutout: int = 0
    val_fraction: float = 0.1
    train_n: int | None = None
    shots: int | None = None
    subset_seed: int = 0


@dataclass
class DigitsConfig(DatasetConfig):
    test_fraction: float = 0.2


@dataclass
class TorchvisionConfig(DatasetConfig):
    """Small images by torchvision: its directory, and whether it may download what is not there."""

    root: str = "data"
    download: bool = True


@dataclass
class FolderConfig(DatasetConfig):
    """An ImageFolder tree ``<split>/<class>/<image>``: a directory, or a .tar / .tar.xz / .tar.gz of one.

    Images are decoded once and held in memory; with ``stream`` (a directory only) they are read anew by
    worker processes whenever they are needed. Either way the shorter side is resized to ``image_size`` /
    ``crop_pct`` and the centre is cropped. ``skip_corrupt`` leaves out images that cannot be decoded, and
    counts them.
    """

    root: str = MISSING
    train_split: str = "train"
    val_split: str | None = None
    test_split: str = "test"
    image_size: int | None = None
    crop_pct: float = 1.0
    interpolation: Interpolation = Interpolation.bilinear
    stream: bool = False
    skip_corrupt: bool = False
    cache: str = "~/.cache/sstune"


@dataclass
class DownloadedFolderConfig(FolderConfig):
    """An image tree that torchvision can download into ``root``."""

    download: bool = True


@dataclass
class MnistConfig(DatasetConfig):
    """``root``: torchvision's directory, or an archive or tree ``<split>/<class>/<image>`` of these images.

    ``padding``: black pixels added on each side (2 gives 32x32).
    """

    root: str = "data"
    download: bool = True
    padding: int = 0
    cache: str = "~/.cache/sstune"
