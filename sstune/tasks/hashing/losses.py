"""Losses that train codes for retrieval.

All take ``outputs``, (N, k) float32 or float64, the logits f of k bits, and return a scalar. A bit of the
code is the sign of its logit, +1 at 0. ``similar`` is 1 for pairs of images that share a label and 0 for
others; an image and itself are a pair, too.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SHORTEST = 1e-8
"""Vectors that are shorter have no direction: their cosines, and the gradients of these, are 0."""

DCH_EPSILON = 1e-5
"""Keeps the distance of equal directions above 0, relative to the number of bits."""


def similarity(targets_a: Tensor, targets_b: Tensor) -> Tensor:
    """(N, M) float32, 1 where two images share a label.

    Args:
        targets_a: (N,) int64 classes, or (N, L) multi-hot.
        targets_b: (M,) or (M, L), likewise.
    """
    if targets_a.ndim == 1:
        return (targets_a[:, None] == targets_b).float()
    return (targets_a @ targets_b.T > 0).float()


def csq(outputs: Tensor, centres: Tensor, weight: float) -> Tensor:
    """Central similarity quantization (Yuan et al. 2020, arXiv 1908.00347).

    The binary cross-entropy of (tanh f + 1)/2 = sigmoid(2 f) to the centres, plus ``weight`` times the mean
    of (abs(tanh f) - 1)^2, as in public code.

    Args:
        centres: (N, k) of -1 and +1, of :func:`sstune.tasks.hashing.centres.target_centres`.
    """
    bits = (centres.to(outputs) + 1) / 2
    quantization = (outputs.tanh().abs() - 1).square().mean()
    return F.binary_cross_entropy_with_logits(2 * outputs, bits) + weight * quantization


def dpsh(outputs: Tensor, bank: Tensor, similar: Tensor, eta: float) -> Tensor:
    """Deep pairwise-supervised hashing (Li et al. 2016, arXiv 1511.03855).

    The mean over all pairs of log(1 + e^t) - s t, t = <u, U_j>/2 with u = f, plus ``eta`` times the mean of
    (sign u - u)^2.

    Args:
        bank: (M, k), the newest outputs of all training images, without gradient.
        similar: (N, M).
    """
    inner = outputs @ bank.T / 2
    return _cross_entropy(inner, similar) + eta * (signs(outputs) - outputs).square().mean()


def dpsh_authors(outputs: Tensor, similar: Tensor, eta: float = 0.01) -> Tensor:
    """DPSH within the batch, as the authors of sign-symmetric fine-tuning ran it.

    The mean over pairs of log(1 + e^t) - s t, t = <z_i, z_j> with z = tanh f, plus ``eta`` times the mean
    over images of the sum over bits of (z - sign z)^2.

    Args:
        similar: (N, N).
    """
    relaxed = outputs.tanh()
    quantization = (relaxed - signs(relaxed)).square().sum(1).mean()
    return _cross_entropy(relaxed @ relaxed.T, similar) + eta * quantization


def hashnet(outputs: Tensor, similar: Tensor, beta: float, scale: float) -> Tensor:
    """HashNet (Cao et al. 2017, arXiv 1702.00758), within the batch.

    The mean over pairs of w (log(1 + e^t) - s t), t = ``scale`` <u_i, u_j> with u = tanh(``beta`` f). The
    weights w of :func:`pair_weights` give similar and dissimilar pairs the same total.

    Args:
        similar: (N, N).
        beta: grows during training, so that u approaches the code.
    """
    relaxed = (beta * outputs).tanh()
    return _cross_entropy(scale * relaxed @ relaxed.T, similar, pair_weights(similar.to(outputs)))


def dch(
    outputs: Tensor, similar: Tensor, gamma: float = 10.0, weight: float = 0.01, share: float | None = None
) -> Tensor:
    """Deep Cauchy hashing (Cao et al. 2018, CVPR), as the authors of sign-symmetric fine-tuning ran it.

    With z = tanh f and the distance d = k (eps + (1 - cos)/2 (1 - 2 eps)): the mean over pairs of
    w (s log(d/gamma) + log(1 + gamma/d)), plus ``weight`` times the mean of log(1 + d(abs(z), 1)/gamma).

    Args:
        similar: (N, N).
        share: of similar pairs in the training set, for w of :func:`pair_weights`; None: in this batch.
    """
    relaxed, similar = outputs.tanh(), similar.to(outputs)
    distance = _dch_distance(cosines(relaxed, relaxed), outputs.shape[1])
    attraction, repulsion = torch.log1p(distance / gamma), torch.log1p(gamma / distance)
    pairs = pair_weights(similar, share) * (similar * attraction + (1 - similar) * repulsion)
    corner = _dch_distance(cosines(relaxed.abs(), torch.ones_like(relaxed[:1])), outputs.shape[1])
    return pairs.mean() + weight * torch.log1p(corner / gamma).mean()


def hyp2(outputs: Tensor, labels: Tensor, proxies: Tensor, margin: float, weight: float = 0.01) -> Tensor:
    """HyP2 (Xu et al. 2022, arXiv 2208.06866), as the authors of sign-symmetric fine-tuning ran it.

    With z = tanh f and P = tanh(``proxies``): the mean of -cos(z, P_c) over images and their labels, plus the
    mean of max(0, cos(z, P_c) - margin) over images and other labels, plus ``weight`` times the mean of
    max(0, cos(z_i, z_j) - margin) over dissimilar pairs.

    Args:
        labels: (N, C) multi-hot.
        proxies: (C, k), learned.
        margin: see :func:`hyp2_margin`.
    """
    relaxed, labels = outputs.tanh(), labels.to(outputs)
    to_proxies = cosines(relaxed, proxies.tanh())
    attraction = _mean_where(labels, -to_proxies)
    repulsion = _mean_where(1 - labels, F.relu(to_proxies - margin))
    dissimilar = 1 - similarity(labels, labels).to(outputs)
    pairs = _mean_where(dissimilar, F.relu(cosines(relaxed, relaxed) - margin))
    return attraction + repulsion + weight * pairs


MINIMUM_DISTANCES = {
    8: (8, 5, 4, 4, 2, 2, 2, 1),
    12: (12, 8, 6, 6, 4, 4, 4, 3, 2, 2),
    16: (16, 10, 8, 8, 8, 6, 6, 5, 4, 4),
    20: (20, 13, 11, 10, 9, 8, 8, 8, 7, 6),
    24: (24, 16, 13, 12, 12, 10, 10, 8, 8, 8),
    32: (32, 21, 18, 16, 16, 16, 14, 13, 12, 12),
    36: (36, 24, 20, 18, 17, 16, 16, 16, 14, 14),
    40: (40, 26, 22, 20, 20, 18, 18, 16, 16, 16),
    48: (48, 32, 27, 24, 24, 24, 22, 22, 20, 20),
    56: (56, 37, 32, 29, 28, 28, 26, 24, 24, 24),
    64: (64, 42, 36, 33, 32, 32, 32, 29, 28, 28),
    96: (96, 64, 54, 50, 48, 48, 48, 46, 44, 44),
    128: (128, 85, 72, 68, 64, 64, 64, 64, 60, 60),
    256: (256, 170, 146, 136, 131, 128, 128, 128, 128, 124),
}
"""By length: the largest known minimum distances of binary linear codes of dimension 1, 2, ... (Grassl's
tables, codetables.de)."""


def hyp2_margin(bits: int, n_classes: int) -> float:
    """The largest cosine that HyP2 allows between images without a common label: 1 - 2 d/``bits``.

    d is the largest known minimum distance of a binary linear code with ``bits`` bits and dimension
    log2(``n_classes``), rounded up, so that the classes have codes at that distance. The published code reads
    the margin from a table of these values, which the authors of sign-symmetric fine-tuning cut to five or
    six decimals; here it is exact. For lengths and dimensions outside of :data:`MINIMUM_DISTANCES`, d is
    Griesmer's upper bound, which exceeds the known d by at most 2 up to 256 classes and by at most 4 up to
    2048, for lengths up to 256.
    """
    dimension = max(1, math.ceil(math.log2(n_classes)))
    known = MINIMUM_DISTANCES.get(bits, ())
    distance = known[dimension - 1] if dimension <= len(known) else _griesmer(bits, dimension)
    return 1 - 2 * distance / bits


def _griesmer(bits: int, dimension: int) -> int:
    """The largest d with sum_{i < dimension} ceil(d / 2^i) <= bits (Griesmer 1960); 0 if there is none."""
    fits = (d for d in range(bits, 0, -1) if sum(-(-d // 2**i) for i in range(dimension)) <= bits)
    return next(fits, 0)


def signs(outputs: Tensor) -> Tensor:
    """-1 and +1, the latter at 0, without gradient; unlike torch.sign, which is 0 at 0."""
    return torch.where(outputs >= 0, 1.0, -1.0).to(outputs)


def cosines(one: Tensor, other: Tensor) -> Tensor:
    """(N, M) between the rows of (N, k) and (M, k); 0 with a vector of zeros."""
    return _directions(one) @ _directions(other).T


def pair_weights(similar: Tensor, share: float | None = None) -> Tensor:
    """1/p for similar pairs, 1/(1 - p) for others, as ``similar``.

    Args:
        share: p, the share of similar pairs; None: the share in ``similar``. Where it is 0 or 1, there is
            nothing to balance on one side, whose weight is then 1.
    """
    p = similar.mean() if share is None else similar.new_full((), share)
    positive, negative = 1 / torch.where(p > 0, p, 1), 1 / torch.where(p < 1, 1 - p, 1)
    return torch.where(similar > 0, positive, negative)


def _directions(vectors: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    directed = length > SHORTEST
    return torch.where(directed, vectors / torch.where(directed, length, 1), 0)


def _cross_entropy(inner: Tensor, similar: Tensor, weights: Tensor | None = None) -> Tensor:
    """The mean of w (log(1 + e^t) - s t), which is the binary cross-entropy of sigmoid(t) to s."""
    return F.binary_cross_entropy_with_logits(inner, similar.to(inner), weights)


def _dch_distance(cosine: Tensor, bits: int) -> Tensor:
    return bits * (DCH_EPSILON + (1 - cosine) / 2 * (1 - 2 * DCH_EPSILON))


def _mean_where(chosen: Tensor, values: Tensor) -> Tensor:
    """The mean of ``values`` where ``chosen`` is 1; 0 if it is 0 everywhere."""
    return (chosen * values).sum() / chosen.sum().clamp_min(1)
