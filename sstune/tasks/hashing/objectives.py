"""Objectives of attacks on a query: its code shall leave that of its own image, or of its relevant items.

The database is clean, and every loss is of one query alone. ``h = tanh(a f)`` are relaxed codes of the
outputs f; a rises in the course of an attack (Cao et al. 2017, HashNet), so that h saturates late.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from sstune.tasks.hashing.losses import signs
from sstune.tasks.objective import Objective

# a, by tenths of an attack.
CONTINUATION = (0.1, 0.1, 0.1, 0.1, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
MARGIN = 0.5  # HAG's t: bits further away than 1 + t have left their own code
SHARPNESS = 5.0  # of SDHA's sigmoid
WEIGHT = 25.0  # of SDHA's distance against the mean squared error of the image
CENTRED = -0.5  # mainstay: bits with v below it have changed


def relaxation(progress: float) -> float:
    """The factor a at a share of the attack's steps, in [0, 1)."""
    return CONTINUATION[min(int(10 * progress + 1e-9), 9)]


def hag(relaxed: Tensor, own: Tensor) -> Tensor:
    """Loss of HAG, (N,), to be decreased (Yang et al. 2020, "Adversarial examples for Hamming space search").

    Args:
        relaxed: (N, k), tanh(a f) of the iterate.
        own: (N, k), tanh f of the image itself; bits count until they have left its sign.
    """
    mask = ((relaxed - signs(own)).abs() <= 1 + MARGIN).to(relaxed)
    mean = (mask * relaxed * own).sum(1) / (mask.sum(1) + 1e-8)
    return (mean + 1) ** 2 + (mask * relaxed).mean(1) ** 2


def sdha(relaxed: Tensor, codes: Tensor, counts: Tensor) -> Tensor:
    """Weighted distance of SDHA, (N,), to be increased (Lu et al. 2021, "Smart deep hashing attack").

    With v = h r for each bit of a code r: the sum of ``(1 - v)/2 sigmoid(5 v) + 1 - sigmoid(5 v)``, times
    ``(d + 1e-8)^-1/2`` for a Hamming distance d; the mean over relevant items.

    Args:
        relaxed: (N, k), tanh(a f) of the iterate.
        codes: (M, k), 1 or -1.
        counts: (N, M), how many of a query's relevant items have each code.
    """

    def of_a_bit(v: Tensor) -> Tensor:
        gate = torch.sigmoid(SHARPNESS * v)
        return (1 - v) / 2 * gate + 1 - gate

    same, opposite = of_a_bit(relaxed), of_a_bit(-relaxed)  # of bits r = 1 and r = -1
    distance = (same + opposite).sum(1, keepdim=True) / 2 + (same - opposite) / 2 @ codes.T
    hamming = (codes.shape[1] - signs(relaxed.detach()) @ codes.T) / 2
    weight = counts * (hamming + 1e-8).rsqrt()  # 1e4 at distance 0: the caller uses float64
    return (weight * distance).sum(1) / counts.sum(1)


def mainstay(relaxed: Tensor, code: Tensor) -> Tensor:
    """Loss of the mainstay attack, (N,), to be decreased (Yuan et al. 2023, SAAT, arXiv 2305.12793).

    ``sum w (v + 2) v / sum w`` with ``v = h c`` and w = 1 for the bits with v > -1/2.

    Args:
        relaxed: (N, k), tanh(a f) of the iterate.
        code: (N, k), c, the mainstay code of :func:`mainstay_code`.
    """
    v = relaxed * code
    weight = (v > CENTRED).to(v)
    return (weight * (v + 2) * v).sum(1) / weight.sum(1).clamp_min(1)


def mainstay_code(similar: Tensor, codes: Tensor) -> Tensor:
    """c = sign(mean of the relevant codes - mean of the others), (N, k) (Yuan et al. 2023, eq. 10).

    Args:
        similar: (N, M), 1 where a training item is relevant to the query, else 0.
        codes: (M, k), 1 or -1.
    """
    relevant, other = similar @ codes, (1 - similar) @ codes
    n = similar.sum(1, keepdim=True)
    return signs(relevant / n.clamp_min(1) - other / (similar.shape[1] - n).clamp_min(1))


@dataclass(frozen=True, eq=False)
class Query:
    """What an attack on N queries knows; all float64, on the device of the batch.

    Args:
        own: (N, k), tanh f of the images themselves.
        reference: (N, k), the code that the attack leaves: the own one, or the mainstay code.
        codes: (M, k), the codes that SDHA leaves, 1 or -1; None: not used.
        counts: (N, M), how many of a query's relevant items have each of them; None: not used.
        images: (N, C, H, W), the queries; None: not used.
    """

    own: Tensor
    reference: Tensor
    codes: Tensor | None = None
    counts: Tensor | None = None
    images: Tensor | None = None

    def take(self, index: Tensor) -> Query:
        """The queries at ``index``."""
        counts = None if self.counts is None else self.counts[index]
        images = None if self.images is None else self.images[index]
        return Query(self.own[index], self.reference[index], self.codes, counts, images)


class Ranking(Protocol):
    """Ranks the database for N queries: (N, k) outputs -> (N,) average precision, on the outputs' device."""

    def __call__(self, outputs: Tensor, /) -> Tensor: ...

    def take(self, index: Tensor, /) -> Self:
        """The queries at ``index``."""


@dataclass(frozen=True, eq=False)
class Displacement(Objective):
    """Move the codes of queries away from ``query.reference``.

    Args:
        name: of the loss, one of :data:`LOSSES`.
        query: of N queries.
        precision: of each query, for the judgement.
    """

    name: str
    query: Query
    precision: Ranking

    def loss(self, outputs: Tensor, images: Tensor, progress: float = 0.0) -> Tensor:
        return LOSSES[self.name](outputs.double(), images, self.query, relaxation(progress))

    def achieved(self, outputs: Tensor) -> Tensor:
        """1 less the average precision of each query."""
        return 1 - self.precision(outputs).float()

    def is_adversarial(self, outputs: Tensor) -> Tensor:
        """Never: a code can always be moved further."""
        return torch.zeros(len(outputs), dtype=torch.bool, device=outputs.device)

    def merit(self, outputs: Tensor) -> Tensor:
        """The number of bits that differ from the reference code; ties by the inner product with it."""
        reference, k = self.query.reference, outputs.shape[1]
        bits = (signs(outputs) != reference).sum(1)
        return bits - (torch.tanh(outputs.double()) * reference).sum(1) / (2 * k + 1)

    def take(self, index: Tensor) -> Self:
        return replace(self, query=self.query.take(index), precision=self.precision.take(index))


def _logits(outputs: Tensor, images: Tensor, query: Query, a: float) -> Tensor:
    return -(outputs * query.reference).sum(1)


def _hag(outputs: Tensor, images: Tensor, query: Query, a: float) -> Tensor:
    return -hag(torch.tanh(a * outputs), query.own)


def _sdha(outputs: Tensor, images: Tensor, query: Query, a: float) -> Tensor:
    """The distance against the mean squared error of the image, which keeps the change small."""
    assert query.codes is not None
    assert query.counts is not None
    assert query.images is not None
    change = ((images - query.images) ** 2).flatten(1).mean(1)
    distance = sdha(torch.tanh(a * outputs), query.codes, query.counts)
    return WEIGHT / outputs.shape[1] * distance - change


def _mainstay(outputs: Tensor, images: Tensor, query: Query, a: float) -> Tensor:
    return -mainstay(torch.tanh(a * outputs), query.reference)


# Losses to increase, (N,), of (outputs, images, query, a); the first is the default.
LOSSES = {"logits": _logits, "hag": _hag, "sdha": _sdha, "mainstay": _mainstay}
