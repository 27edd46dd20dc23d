"""The retrieval database of a network: its codes and labels, and those of the training images.

``codes.npz`` holds what :func:`sstune.retrieval.write_codes` writes of the database, where ``ids`` are the
images' positions in the dataset; and ``train``, the packed codes of the training images, ``outputs``, (N, k)
float32, if ties are broken by them, and the sha256 of the images, ``database_digest`` and ``train_digest``.

NumPy alone reads it. The ids of the ten images nearest to the first one of the database::

    with np.load("codes.npz") as file:
        codes, ids, labels = file["packed"], file["ids"], file["labels"]
    distances = np.bitwise_count(codes ^ codes[0]).sum(axis=1)
    nearest = ids[np.argsort(distances, kind="stable")[:10]]

The code of other outputs f, (k,), is ``np.packbits(f >= 0)``. Bits that fill up the last byte are 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from sstune.copying import to_device
from sstune.datasets import Splits
from sstune.retrieval import (
    Codes,
    Labels,
    RankSettings,
    StoredCodes,
    average_precision,
    read_codes,
    write_codes,
)


@dataclass(frozen=True, eq=False)
class Reference:
    """What queries are ranked against.

    Args:
        codes: of the N database images, in the database's order; ``labels`` likewise.
        train: (M, k) int8, codes of the training images, 1 or -1; ``train_targets`` their targets.
        outputs: (N, k) float32 of the database images, where ties are to be broken by them.
    """

    codes: Codes
    labels: Labels
    train: Tensor
    train_targets: Tensor
    outputs: Tensor | None = None


def save(path: Path, reference: Reference, splits: Splits, model: str) -> None:
    """Write ``codes.npz``.

    Args:
        model: sha256 of the weights.
    """
    assert splits.indices is not None
    more: dict[str, Any] = {"train": Codes.of(reference.train).packed, **_digests(splits)}
    if reference.outputs is not None:
        more["outputs"] = reference.outputs.numpy()
    ids = splits.indices["database"].numpy()
    write_codes(path, StoredCodes(reference.codes, ids, reference.labels, model, more))


def load(path: Path, splits: Splits, model: str, refined: bool) -> Reference:
    """Read ``codes.npz``.

    Args:
        refined: whether outputs are needed.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or of other weights or images.
    """
    stored = read_codes(path)
    digests = {name: str(stored.more.get(name)) for name in _digests(splits)}
    if stored.model != model or digests != _digests(splits):
        raise ValueError(f"{path} is of other weights or images")
    bits, n, targets = stored.codes.bits, len(stored.codes), splits.train.targets.cpu()
    try:
        train = torch.from_numpy(Codes(stored.more["train"], bits).signs())
        outputs = torch.from_numpy(stored.more["outputs"]) if refined else None
    except KeyError as error:
        raise ValueError(f"{path} has no {error}") from error
    shapes = n, len(train), (n, bits) if outputs is None else tuple(outputs.shape)
    if shapes != (len(splits.named["database"]), len(targets), (n, bits)):
        raise ValueError(f"{path} does not have the codes of all images")
    return Reference(stored.codes, stored.labels, train, targets, outputs)


def _digests(splits: Splits) -> dict[str, str]:
    assert splits.database is not None
    return {"database_digest": splits.database.digest, "train_digest": splits.train.digest}


@dataclass(frozen=True, eq=False)
class DatabaseRanking:
    """Ranks the database for N queries.

    Args:
        reference: the database.
        targets: of the queries.
        top: K of AP@K; None: all.
    """

    reference: Reference
    targets: Tensor
    top: int | None

    def __call__(self, outputs: Tensor) -> Tensor:
        """(N, k) outputs -> (N,) float32 average precision, with ties in expectation."""
        device = outputs.device if outputs.device.type == "cuda" else None
        found = average_precision(
            Codes.of(outputs.detach().cpu()),
            Labels.of(self.targets.cpu()),
            self.reference.codes,
            self.reference.labels,
            RankSettings(top=self.top, device=device),
        )
        return to_device(torch.from_numpy(found).float(), outputs.device)

    def take(self, index: Tensor) -> Self:
        """The queries at ``index``."""
        return replace(self, targets=self.targets[index])
