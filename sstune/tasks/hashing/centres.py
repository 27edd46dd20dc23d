"""Hash centres: the codes that CSQ draws each class towards (Yuan et al. 2020, arXiv 1908.00347)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sstune.schema import RequestError
from sstune.seeding import seed_from

Codes = npt.NDArray[np.float32]
"""(n, bits), each entry -1 or +1."""

DRAWS = 32
"""Draws of Hadamard rows, of which the one with the best columns is kept."""

ENUMERATED_BITS = 16
"""Up to this length, the search goes through all codes."""

BLOCK, BLOCKS = 1024, 64
"""Candidates that a search compares at once, and how many such blocks of longer codes it draws."""


def class_centres(bits: int, n_classes: int, seed: int) -> Tensor:
    """One code for each class, (n_classes, bits) float32 of -1 and +1, the same on every machine.

    Up to 2 ``bits`` classes where :func:`hadamard` has a matrix H: rows of [H; -H], which differ in at least
    half of their bits, with the signs of columns flipped at random. Otherwise codes from a search, which
    differ in more than a quarter of their bits, and in more where the search finds enough of those.

    Raises:
        RequestError: the search does not find that many codes.
    """
    matrix = hadamard(bits)
    if matrix is not None and n_classes <= 2 * bits:
        return torch.from_numpy(_hadamard_rows(matrix, n_classes, _stream(seed, "rows")))
    least, most = bits // 4 + 1, bits // 2
    codes = _search(bits, n_classes, least, seed)
    if len(codes) < n_classes:
        found = f"of codes that differ in {least} bits or more, {len(codes)} were found"
        raise RequestError(f"task.bits: {bits} are too few bits for {n_classes} classes: {found}")
    while least < most:
        middle = (least + most + 1) // 2
        wider = _search(bits, n_classes, middle, seed)
        if len(wider) == n_classes:
            codes, least = wider, middle
        else:
            most = middle - 1
    return torch.from_numpy(codes)


def tie_code(bits: int, seed: int) -> Tensor:
    """The random code that breaks ties of :func:`target_centres`, (bits,) float32 of -1 and +1."""
    return torch.from_numpy(_signs(bits, _stream(seed, "tie code")))


def target_centres(targets: Tensor, centres: Tensor, tie_code: Tensor) -> Tensor:
    """The code that each image is drawn towards, (N, bits).

    That of its class; of several labels, the majority of their centres in each bit, and that of ``tie_code``
    where there is none. An image without labels gets ``tie_code``.

    Args:
        targets: (N,) int64 classes, or (N, L) multi-hot.
        centres: (classes, bits).
        tie_code: (bits,).
    """
    if targets.ndim == 1:
        return centres[targets]
    votes = targets.to(centres.dtype) @ centres
    return torch.where(votes == 0, tie_code, votes.sign())


def hadamard(order: int) -> Codes | None:
    """A matrix of -1 and +1 with orthogonal rows, (order, order); None where these constructions have none.

    Sylvester's for powers of two, Paley's first for q + 1 with a prime q = 3 mod 4, and twice the order of a
    smaller one, [[H, H], [H, -H]].
    """
    if order == 1:
        return np.ones((1, 1), dtype=np.float32)
    if order % 4 and order != 2:
        return None
    if order & (order - 1) and _is_prime(order - 1):
        return _paley(order - 1)
    half = hadamard(order // 2)
    return None if half is None else np.block([[half, half], [half, -half]])


def _paley(q: int) -> Codes:
    """I + S, (q + 1, q + 1), where S = [[0, 1], [-1, Q]] and Q_ij is the Legendre symbol of i - j mod q."""
    residues = np.arange(q)
    character = np.where(np.isin(residues, residues**2 % q), 1, -1)
    character[0] = 0
    skew = np.zeros((q + 1, q + 1), dtype=np.float32)
    skew[0, 1:], skew[1:, 0] = 1, -1
    skew[1:, 1:] = character[(residues[:, None] - residues) % q]
    return skew + np.eye(q + 1, dtype=np.float32)


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def _hadamard_rows(matrix: Codes, n: int, stream: np.random.RandomState) -> Codes:
    """``n`` rows of [H; -H], of each row of H at most one sign while n <= order.

    The first rows of Sylvester's matrix would not do: in its first 10, columns repeat after 16. So rows are
    drawn, and of some draws, one is kept with the fewest constant columns, then the most distinct ones.
    """
    order, best, best_quality = len(matrix), matrix[:0], (-1, -1)
    for _ in range(DRAWS):
        signed = matrix * _signs(order, stream)[:, None]
        stacked = np.concatenate([signed[stream.permutation(order)], -signed[stream.permutation(order)]])
        quality = _column_quality(stacked[:n])
        if quality > best_quality:
            best, best_quality = stacked[:n], quality
        if quality == (order, order):
            break
    return best * _signs(order, stream)


def _column_quality(codes: Codes) -> tuple[int, int]:
    """How many columns are not constant, and how many are distinct; opposite columns count as equal."""
    relative = codes * codes[:1]
    varying = int((relative != relative[:1]).any(0).sum())
    return varying, len(np.unique(relative, axis=1).T)


def _search(bits: int, n: int, distance: int, seed: int) -> Codes:
    """``n`` codes, or fewer, that differ in at least ``distance`` bits: each candidate that does so from all
    that were chosen before."""
    chosen = np.empty((0, bits), dtype=np.float32)
    for block in _candidates(bits, _stream(seed, "candidates")):
        far = block[(_distances(block, chosen) >= distance).all(1)]
        near, allowed = _distances(far, far) < distance, np.ones(len(far), dtype=bool)
        for i in range(len(far)):
            if allowed[i]:
                allowed[i + 1 :] &= ~near[i, i + 1 :]
        chosen = np.concatenate([chosen, far[allowed]])[:n]
        if len(chosen) == n:
            break
    return chosen[_stream(seed, "order").permutation(len(chosen))]


def _candidates(bits: int, stream: np.random.RandomState) -> Iterator[Codes]:
    """Blocks of codes to choose from, (m, bits).

    Short ones: all, counting upwards, with columns permuted and their signs flipped; the search then finds
    the lexicode, which is linear and has nearly as many codes as possible (Conway & Sloane 1986). Longer
    ones: drawn at random, with as many -1 as +1.
    """
    if bits <= ENUMERATED_BITS:
        order, signs = stream.permutation(bits), _signs(bits, stream)
        for first in range(0, 2**bits, BLOCK):
            numbers = np.arange(first, min(first + BLOCK, 2**bits))[:, None]
            yield (signs - 2 * signs * (numbers >> order & 1)).astype(np.float32)
        return
    for _ in range(BLOCKS):
        ranks = stream.random_sample((BLOCK, bits)).argsort(1, kind="stable")
        yield np.where(ranks < bits // 2, 1, -1).astype(np.float32)


def _distances(one: Codes, other: Codes) -> Codes:
    """Hamming distances, (n, m)."""
    return (one.shape[1] - one @ other.T) / 2


def _signs(n: int, stream: np.random.RandomState) -> Codes:
    return np.where(stream.randint(0, 2, n), 1, -1).astype(np.float32)


def _stream(seed: int, name: str) -> np.random.RandomState:
    """NumPy's RandomState, whose stream is the same on every machine and in every version."""
    key = seed_from("hashing", name, seed)
    return np.random.RandomState([key % 2**32, key >> 32])
