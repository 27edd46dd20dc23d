"""Adversarial images for a look: ``images.npz`` for programs, ``images.png`` for readers."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sstune.attacks import Outcome, Victim
from sstune.commands.nearest import found_images, label_text
from sstune.datasets import Split, Splits, batches, evenly_spaced
from sstune.modes import eval_mode
from sstune.quantities import parse_eps
from sstune.report.grid import Attacked, image_grid
from sstune.report.nearest import neighbour_grid
from sstune.rules import frozen_feedback
from sstune.schema import AttackConfig
from sstune.storage import write_bytes
from sstune.tasks import Neighbours

BATCH_SIZE = 128
DRAWN = 4  # attacks; each takes two columns
NEAREST = 10  # database images of a query
LINES = 24  # of a picture with database images
GAP = 0.3  # above the lines of a query
HEADING = (
    "nearest database images: label (distance); green: shares a label with the query, red, dashed: does not"
)


def save_images(
    directory: Path, config: AttackConfig, victim: Victim, cells: Mapping[str, Outcome], data: Splits
) -> None:
    """Write ``config.save_images`` of the images, spread over all, clean and as each cell's attack left them.

    In ``images.npz``: ``samples`` (indices in the test split), ``labels``, ``clean`` (k, C, H, W) uint8,
    ``clean/predicted`` (k, ...), and of every cell, such as "rule 8/255", ``CELL`` and ``CELL/predicted``.
    All are of 8 bits, and predicted is what the network makes of that: a success may be lost in rounding. Of
    a task with a database also ``CELL/nearest`` (k, 10), the nearest images by their ids in ``codes.npz``.
    """
    few = victim.some(config.save_images)
    images = {"clean": victim.images(config.save_images)}
    images |= {key: outcome.images for key, outcome in cells.items()}
    predicted = {key: predictions(victim, Split(value, few.split.targets)) for key, value in images.items()}
    labels = few.split.targets.cpu().numpy()
    arrays: dict[str, Any] = {"samples": few.samples.numpy(), "labels": labels}
    for key, value in images.items():
        arrays |= {key: value.numpy(), f"{key}/predicted": predicted[key]}
    nearest = _neighbours(few, predicted)
    if data.indices is not None:
        ids = data.indices["database"].numpy()
        arrays |= {f"{key}/nearest": ids[found.positions] for key, found in nearest.items()}
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    write_bytes(directory / "images.npz", file.getbuffer())
    shown = drawn(config, cells)
    if nearest:
        lines = {key: arrays[key] for key in ("clean", *shown)}
        picture = _ranked(config, few, lines, predicted, nearest, data)
    elif labels.ndim == 1:
        attacked = [Attacked(f"{config.name} {key}", arrays[key], predicted[key]) for key in shown]
        picture = image_grid(arrays["clean"], labels, predicted["clean"], attacked, data.classes)
    else:  # the picture names one class for each image
        return
    write_bytes(directory / "images.png", picture)


def _neighbours(few: Victim, predicted: Mapping[str, npt.NDArray[Any]]) -> dict[str, Neighbours]:
    """The nearest database images for the predictions of each cell; empty for tasks without a database."""
    targets = few.split.targets.cpu()
    each = {
        key: few.task.neighbours(torch.from_numpy(found), few.reference, NEAREST, targets)
        for key, found in predicted.items()
    }
    return {key: found for key, found in each.items() if found is not None}


def _ranked(
    config: AttackConfig,
    few: Victim,
    images: Mapping[str, npt.NDArray[np.uint8]],
    predicted: Mapping[str, npt.NDArray[Any]],
    nearest: Mapping[str, Neighbours],
    data: Splits,
) -> bytes:
    """A picture of queries with their nearest database images: a line for the clean query and for each cell
    of ``images``, of as many queries as fit."""
    targets = few.split.targets.cpu()
    chosen = evenly_spaced(max(1, LINES // len(images)), len(targets)).numpy()
    lines = []
    for key, pixels in images.items():
        each = few.task.score(torch.from_numpy(predicted[key]), targets, few.reference).each
        assert each is not None
        name = "clean" if key == "clean" else f"{config.name} {key}"
        titles = [
            f"{label_text(targets[query], data.classes)}\n{name}\nAP {float(each[query]):.3f}"
            for query in chosen
        ]
        lines.append(found_images(titles, pixels[chosen], nearest[key].take(chosen), data))
    queries = [[replace(query[0], gap=GAP), *query[1:]] for query in zip(*lines, strict=True)]
    return neighbour_grid([line for query in queries for line in query], HEADING)


def drawn(config: AttackConfig, cells: Mapping[str, Outcome]) -> list[str]:
    """The cells that fit side by side: all, or of each view the smallest and the largest eps, or the
    largest."""
    views: dict[str, list[str]] = {}
    for key in sorted(cells, key=lambda key: parse_eps(key.rpartition(" ")[2], config.norm)):
        views.setdefault(key.rpartition(" ")[0], []).append(key)
    if len(cells) <= DRAWN:
        return [key for keys in views.values() for key in keys]
    if 2 * len(views) <= DRAWN:
        return [key for keys in views.values() for key in dict.fromkeys((keys[0], keys[-1]))]
    return [keys[-1] for keys in views.values()][:DRAWN]


@torch.no_grad()
def predictions(victim: Victim, split: Split) -> npt.NDArray[Any]:
    """The victim's predictions for images, (N, ...)."""
    found: list[Tensor] = []
    with eval_mode(victim.network), frozen_feedback(victim.network):
        for batch in batches(split, BATCH_SIZE, victim.device):
            found.append(victim.task.predict(victim.network(batch.images)).cpu())
    return torch.cat(found).numpy()
