"""Adversarial images for a look: ``images.npz`` for programs, ``images.png`` for readers."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sstune.attacks import Outcome, Victim
from sstune.datasets import Split, batches
from sstune.modes import eval_mode
from sstune.quantities import parse_eps
from sstune.report.grid import Attacked, image_grid
from sstune.rules import frozen_feedback
from sstune.schema import AttackConfig
from sstune.storage import write_bytes

BATCH_SIZE = 128
DRAWN = 4  # attacks; each takes two columns


def save_images(
    directory: Path,
    config: AttackConfig,
    victim: Victim,
    cells: Mapping[str, Outcome],
    classes: Sequence[str],
) -> None:
    """Write ``config.save_images`` of the images, spread over all, clean and as each cell's attack left them.

    In ``images.npz``: ``samples`` (indices in the test split), ``labels``, ``clean`` (k, C, H, W) uint8,
    ``clean/predicted`` (k,), and of every cell, such as "rule 8/255", ``CELL`` and ``CELL/predicted``. All
    are of 8 bits, and predicted is what the network makes of that: a success may be lost in rounding.
    """
    few = victim.some(config.save_images)
    images = {"clean": victim.images(config.save_images)}
    images |= {key: outcome.images for key, outcome in cells.items()}
    predicted = {key: predictions(victim, Split(value, few.split.targets)) for key, value in images.items()}
    labels = few.split.targets.cpu().numpy()
    arrays: dict[str, Any] = {"samples": few.samples.numpy(), "labels": labels}
    for key, value in images.items():
        arrays |= {key: value.numpy(), f"{key}/predicted": predicted[key]}
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    write_bytes(directory / "images.npz", file.getbuffer())
    if labels.ndim > 1 or predicted["clean"].ndim > 1:  # the picture names one class for each image
        return
    attacked = [
        Attacked(f"{config.name} {key}", images[key].numpy(), predicted[key]) for key in drawn(config, cells)
    ]
    picture = image_grid(images["clean"].numpy(), labels, predicted["clean"], attacked, classes)
    write_bytes(directory / "images.png", picture)


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
