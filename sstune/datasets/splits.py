"""Training, validation and test splits, and how they are made."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sstune.datasets.files import ImageFiles
from sstune.schema import RequestError, shown

Images = Tensor | ImageFiles
"""uint8 [N, C, H, W], or image files that are read when they are needed."""

SPLIT_SEED = 0
"""Seed of all splits, independent of the run's seed.

A fine-tuned run may start from weights that were trained with another seed. If the splits depended on the
run's seed, its validation and test images could be among the training images of its ancestor. A fixed seed
also pairs runs of different seeds on the same test images.
"""


def permutation(n: int, seed: int) -> Tensor:
    """A permutation of 0..n-1 (int64), determined by ``seed`` (>= 0).

    Drawn from NumPy's RandomState, whose stream is the same on every machine and in every version.
    """
    stream = np.random.RandomState([seed % 2**32, seed >> 32])
    return torch.from_numpy(stream.permutation(n).astype(np.int64))


def evenly_spaced(n: int, among: int) -> Tensor:
    """Positions (int64, ascending) of min(``n``, ``among``) samples, evenly spaced in ``among``.

    A split may be sorted by class, so that its first samples would all be of one class.
    """
    n = min(n, among)
    return torch.arange(n) * among // max(n, 1)


@dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 [N, C, H, W], or their files, and labels: int64 [N], or float32 [N, L] multi-hot."""

    images: Images
    targets: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.images, ImageFiles) and (
            self.images.dtype != torch.uint8 or self.images.ndim != 4
        ):
            raise ValueError(f"images: expected uint8 [N, C, H, W], got {_described(self.images)}")
        kind = self.targets.dtype, self.targets.ndim
        if kind not in ((torch.int64, 1), (torch.float32, 2)) or len(self.targets) != len(self.images):
            expected = f"int64 [{len(self.images)}] or float32 [{len(self.images)}, L]"
            raise ValueError(f"targets: expected {expected}, got {_described(self.targets)}")

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def strata(self) -> Tensor:
        """Strata for sampling, int64 [N]: the classes; one stratum for multi-label targets."""
        return self.targets if self.targets.ndim == 1 else torch.zeros(len(self), dtype=torch.int64)

    @functools.cached_property
    def digest(self) -> str:
        """sha256 (hex) of shape, images and labels, on every device; of files see ImageFiles.digest."""
        if isinstance(self.images, ImageFiles):
            return self.images.digest(self.targets)
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        for tensor in (self.images, self.targets):
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> Split:
        """Move tensors to ``device``; files are not read."""
        images = self.images if isinstance(self.images, ImageFiles) else self.images.to(device)
        return Split(images, self.targets.to(device))

    def take(self, index: Tensor) -> Split:
        """The samples at ``index`` (int64 [n]), in that order."""
        index = index.to(self.targets.device)
        return Split(self.images[index], self.targets[index])

    def sample(self, n: int | None, seed: int) -> tuple[Split, Tensor]:
        """Draw ``n`` samples without replacement, seeded by ``seed``, in the split's order.

        The samples of a smaller ``n`` are among those of a larger one. None: all samples.

        Returns:
            The subset, and the samples' positions in this split (int64 [n], ascending, on the CPU).

        Raises:
            ValueError: ``n`` below 1.
        """
        if n is not None and n < 1:
            raise ValueError(f"cannot sample {n} images")
        if n is None or n >= len(self):
            return self, torch.arange(len(self))
        index = permutation(len(self), seed)[:n].sort().values
        return self.take(index), index


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} {[*tensor.shape]}"


@dataclass(frozen=True, eq=False)
class Splits:
    """Three disjoint splits, the names of the classes by label, and the corrupt images that were skipped.

    Attributes:
        remarks: further notes on these images, printed at the start of a run.
        database: retrieval: the images that are searched. ``test`` has the queries, and none of them is in
            the database; training and validation images may be.
        indices: retrieval: for each split the positions of its images in the pool of all images, int64 [n].
            Equal positions are the same image.

    Raises:
        RequestError: a label is out of range.
    """

    train: Split
    val: Split
    test: Split
    classes: list[str]
    skipped: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    database: Split | None = None
    indices: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        for name, split in self.named.items():
            if split.targets.ndim == 2:
                if split.targets.shape[1] != len(self.classes):
                    what = f"{split.targets.shape[1]} labels an image, expected {len(self.classes)}"
                    raise RequestError(f"dataset.root: the {name} split has {what}")
                continue
            wrong = split.targets[(split.targets < 0) | (split.targets >= len(self.classes))]
            if len(wrong):
                what = f"label {int(wrong[0])}, expected 0 to {len(self.classes) - 1}"
                raise RequestError(f"dataset.root: an image of the {name} split has the {what}")

    @property
    def named(self) -> dict[str, Split]:
        """The splits by name; the database only if there is one."""
        splits = {"train": self.train, "val": self.val, "test": self.test}
        return splits if self.database is None else {**splits, "database": self.database}

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return self.train.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.train.images.shape[2], self.train.images.shape[3]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self.channels, *self.image_size

    @property
    def n_classes(self) -> int:
        return len(self.classes)

    @property
    def notes(self) -> list[str]:
        """Notes to print at the start of a run, one line each."""
        if not self.skipped:
            return self.remarks
        names = ", ".join(map(shown, self.skipped[:3])) + (", ..." if len(self.skipped) > 3 else "")
        return [f"skipped {len(self.skipped)} images that cannot be decoded: {names}", *self.remarks]

    @property
    def skipped_summary(self) -> dict[str, int | list[str]]:
        """For a row: the number of skipped images, and the names of the first 20."""
        return {"n": len(self.skipped), "first": self.skipped[:20]}


def split_off(split: Split, fraction: float, key: str) -> tuple[Split, Split]:
    """Split off the samples at :func:`split_off_positions`.

    Returns:
        The remaining split and the part that was split off.
    """
    rest, part = split_off_positions(split.strata, fraction, key)
    return split.take(rest), split.take(part)


def split_off_positions(strata: Tensor, fraction: float, key: str) -> tuple[Tensor, Tensor]:
    """Choose a random, stratified ``fraction``, seeded by ``SPLIT_SEED``.

    Class quotas are rounded by the largest remainder, so that the sizes are exact, and at least one sample of
    each class remains.

    Args:
        strata: the stratum of each sample, int64 [N].
        key: the configuration key of ``fraction``, for errors.

    Returns:
        Positions of the other samples and of the chosen ones, int64, ascending.

    Raises:
        RequestError: one of the two would be empty.
    """
    counts = torch.bincount(strata)
    exact = counts * fraction
    quota = exact.floor().long()
    rounded_up = (exact - quota).argsort(descending=True, stable=True)
    quota[rounded_up[: round(len(strata) * fraction) - int(quota.sum())]] += 1
    quota = quota.minimum((counts - 1).clamp(min=0))

    order = permutation(len(strata), SPLIT_SEED)
    shuffled = strata[order]
    chosen = torch.zeros(len(strata), dtype=torch.bool)
    for label, n in enumerate(quota.tolist()):
        chosen[order[shuffled == label][:n]] = True
    if not chosen.any() or chosen.all():
        raise RequestError(f"{key}: {fraction:g} of {len(strata)} images leaves one of the two splits empty")
    return (~chosen).nonzero()[:, 0], chosen.nonzero()[:, 0]


def subset(split: Split, train_n: int | None, shots: int | None, seed: int, classes: Sequence[str]) -> Split:
    """The samples at :func:`subset_positions`; the whole split if both are None."""
    chosen = subset_positions(split, train_n, shots, seed, classes)
    return split if chosen is None else split.take(chosen)


def subset_positions(
    split: Split, train_n: int | None, shots: int | None, seed: int, classes: Sequence[str]
) -> Tensor | None:
    """A stratified subset of ``train_n`` images, or of ``shots`` images of each class.

    The images of a class are ordered at random; the i-th of m has the rank (i - 1/2) / m, and the images of
    the lowest ranks are chosen (Webster's apportionment). Unlike the largest remainder, this nests subsets: a
    larger subset of the same ``seed`` contains a smaller one.

    Returns:
        Positions in the split, int64 [n], ascending; None if both are None: the whole split.

    Raises:
        RequestError: the split, or a class, has too few images.
    """
    if train_n is None and shots is None:
        return None
    if shots is not None and split.targets.ndim == 2:
        raise RequestError("dataset.shots: needs images with one class each; use dataset.train_n")
    labels = split.strata.numpy()
    order = permutation(len(split), seed).numpy()
    by_class = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels, minlength=len(classes))
    rank = np.arange(len(labels)) - (np.cumsum(counts) - counts)[labels[by_class]]  # within its class
    if shots is not None:
        if counts.min() < shots:
            fewest = int(counts.argmin())
            raise RequestError(
                f"dataset.shots: {shots} images of each class are needed, but class"
                f" {classes[fewest]!r} has {counts[fewest]} training images"
            )
        chosen = by_class[rank < shots]
    else:
        assert train_n is not None
        if train_n > len(split):
            raise RequestError(f"dataset.train_n: {train_n} is more than the {len(split)} training images")
        drawn_at = np.argsort(order)[by_class]  # breaks ties between classes
        chosen = by_class[np.lexsort((drawn_at, (rank + 0.5) / counts[labels[by_class]]))[:train_n]]
    return torch.from_numpy(np.sort(chosen))
