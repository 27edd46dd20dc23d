"""The retrieval database of a network: its codes and labels, and those of the training images.

File ``codes.npz``: ``packed``, (N, ceil(k / 8)) uint8, the database's codes as ``np.packbits`` writes them
and faiss reads them, ``bits``, ``ids`` (N,), the images' positions in the dataset, ``labels``; ``train``, the
codes of the training images, packed likewise; ``outputs``, (N, k) float32, if ties are broken by them; and
the sha256 of what they belong to: ``model``, ``database_digest``, ``train_digest``.

NumPy alone reads it. The ids of the ten images nearest to the first one of the database::

    with np.load("codes.npz") as file:
        codes, ids, labels = file["packed"], file["ids"], file["labels"]
    distances = np.bitwise_count(codes ^ codes[0]).sum(axis=1)
    nearest = ids[np.argsort(distances, kind="stable")[:10]]

The code of other outputs f, (k,), is ``np.packbits(f >= 0)``. Bits that fill up the last byte are 0.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from sstune.copying import to_device
from sstune.datasets import Splits
from sstune.retrieval import Codes, Labels, RankSettings, average_precision
from sstune.storage import write_bytes


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
    assert splits.database is not None
    assert splits.indices is not None
    arrays: dict[str, Any] = {
        "packed": reference.codes.packed,
        "bits": reference.codes.bits,
        "ids": splits.indices["database"].numpy(),
        "labels": splits.database.targets.cpu().numpy(),
        "train": Codes.of(reference.train).packed,
        **_digests(splits, model),
    }
    if reference.outputs is not None:
        arrays["outputs"] = reference.outputs.numpy()
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    write_bytes(path, file.getbuffer())


def load(path: Path, splits: Splits, model: str, refined: bool) -> Reference:
    """Read ``codes.npz``.

    Args:
        refined: whether outputs are needed.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or of other weights or images.
    """
    assert splits.database is not None
    try:
        with np.load(path) as file:
            found = dict(file)
        bits = int(found["bits"])
        codes, train = (Codes(found[name], bits) for name in ("packed", "train"))
        outputs = torch.from_numpy(found["outputs"]) if refined else None
        same = all(str(found[name]) == value for name, value in _digests(splits, model).items())
    except (KeyError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error
    if not same:
        raise ValueError(f"{path} is of other weights or images")
    labels = Labels.of(splits.database.targets.cpu())
    return Reference(codes, labels, torch.from_numpy(train.signs()), splits.train.targets.cpu(), outputs)


def _digests(splits: Splits, model: str) -> dict[str, str]:
    assert splits.database is not None
    digests = {"database_digest": splits.database.digest, "train_digest": splits.train.digest}
    return {"model": model, **digests}


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
        found = average_precision(
            Codes.of(outputs.detach().cpu()),
            Labels.of(self.targets.cpu()),
            self.reference.codes,
            self.reference.labels,
            RankSettings(top=self.top),
        )
        return to_device(torch.from_numpy(found).float(), outputs.device)

    def take(self, index: Tensor) -> Self:
        """The queries at ``index``."""
        return replace(self, targets=self.targets[index])
