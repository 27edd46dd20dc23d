"""The database images that are nearest to queries, for pictures and lists."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sstune.datasets import ImageFiles, Split, Splits, batches
from sstune.report.nearest import Found
from sstune.schema import shown
from sstune.tasks import Neighbours

BATCH_SIZE = 128
LONGEST = 24  # letters of a caption


def found_images(
    titles: Sequence[str], queries: npt.NDArray[np.uint8], nearest: Neighbours, data: Splits
) -> list[Found]:
    """Each query, (N, C, H, W), with its nearest images, which are read now."""
    assert data.database is not None
    places, which = np.unique(nearest.positions, return_inverse=True)
    which = which.reshape(nearest.positions.shape)
    chosen = data.database.take(torch.from_numpy(places))
    images = pixels_of(chosen)
    names = [label_text(target, data.classes) for target in chosen.targets]
    found = []
    for number, (title, query) in enumerate(zip(titles, queries, strict=True)):
        captions = [
            f"{textwrap.shorten(names[place], LONGEST, placeholder=' …')} ({distance})"
            for place, distance in zip(which[number], nearest.distances[number], strict=True)
        ]
        relevant = None if nearest.relevant is None else nearest.relevant[number]
        found.append(Found(title, query, images[which[number]], captions, relevant))
    return found


def pixels_of(split: Split) -> npt.NDArray[np.uint8]:
    """The images of a split, (N, C, H, W); files are read."""
    parts = [batch.images for batch in batches(split, BATCH_SIZE, "cpu")]
    return (255 * torch.cat(parts)).round().byte().numpy()


def label_text(target: Tensor, classes: Sequence[str]) -> str:
    """The name of a class, (), or of each of several labels, (L,)."""
    if target.ndim == 0:
        return shown(classes[int(target)])
    return ", ".join(shown(classes[int(label)]) for label in target.nonzero()[:, 0]) or "no label"


def image_name(data: Splits, position: int) -> str:
    """A database image's file, or its index in the dataset (its splits train, val and test in this order)."""
    assert data.database is not None
    images = data.database.images
    if isinstance(images, ImageFiles):
        return shown(os.fsdecode(bytes(images.names[position])))
    index = position if data.indices is None else int(data.indices["database"][position])
    return f"image {index}"
