"""Losses and gradients against their formulas in plain Python, float64, and finite differences of these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import exp, log, sqrt, tanh

import numpy as np
import pytest
import torch
from torch import Tensor

from sstune.tasks.hashing import losses

Rows = Sequence[Sequence[float]]
Torch, Naive = Callable[..., Tensor], Callable[..., float]

N, BITS, CLASSES = 7, 5, 4
STREAM = np.random.default_rng(1)
OUTPUTS = STREAM.normal(0, 1.3, (N, BITS))
BANK = STREAM.normal(0, 1.3, (9, BITS))
PROXIES = STREAM.normal(0, 0.8, (CLASSES, BITS))
CENTRES = np.where(STREAM.random((N, BITS)) < 0.5, -1.0, 1.0)
LABELS = np.array(
    [[1, 0, 0, 0], [0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]
)
BANK_LABELS = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1]] * 3)


def shares(one: Rows, other: Rows) -> list[list[float]]:
    return [[float(any(x and y for x, y in zip(a, b, strict=True))) for b in other] for a in one]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def dot(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(one, other, strict=True))


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    return dot(one, other) / sqrt(dot(one, one) * dot(other, other))


def squashed(rows: Rows, beta: float = 1.0) -> list[list[float]]:
    return [[tanh(beta * x) for x in row] for row in rows]


def sign(x: float) -> float:
    return 1.0 if x >= 0 else -1.0


def likelihood(t: float, s: float) -> float:
    """-log of the probability of s, sigmoid(t) of 1."""
    p = 1 / (1 + exp(-t))
    return -log(p) if s else -log(1 - p)


def naive_csq(outputs: Rows, centres: Rows, weight: float) -> float:
    terms, quantization = [], []
    for row, centre in zip(squashed(outputs), centres, strict=True):
        for u, c in zip(row, centre, strict=True):
            p = (u + 1) / 2
            terms.append(-log(p) if c > 0 else -log(1 - p))
            quantization.append((abs(u) - 1) ** 2)
    return mean(terms) + weight * mean(quantization)


def naive_dpsh(outputs: Rows, bank: Rows, similar: Rows, eta: float) -> float:
    terms = [
        likelihood(dot(u, v) / 2, s)
        for u, row in zip(outputs, similar, strict=True)
        for v, s in zip(bank, row, strict=True)
    ]
    return mean(terms) + eta * mean([(sign(x) - x) ** 2 for row in outputs for x in row])


def naive_dpsh_authors(outputs: Rows, similar: Rows, eta: float = 0.01) -> float:
    z = squashed(outputs)
    terms = []
    for i in range(len(z)):
        for j in range(len(z)):
            t = dot(z[i], z[j])
            terms.append(similar[i][j] * t + log(1 / (1 + exp(t))))
    return -mean(terms) + eta * mean([sum((x - sign(x)) ** 2 for x in row) for row in z])


def naive_hashnet(outputs: Rows, similar: Rows, beta: float, scale: float) -> float:
    u = squashed(outputs, beta)
    kinds: dict[float, list[float]] = {0.0: [], 1.0: []}
    for i in range(len(u)):
        for j in range(len(u)):
            kinds[similar[i][j]].append(likelihood(scale * dot(u[i], u[j]), similar[i][j]))
    pairs = len(u) ** 2  # each pair weighs pairs / (pairs of its kind)
    return sum(sum(each) * pairs / len(each) for each in kinds.values() if each) / pairs


def naive_dch(
    outputs: Rows, similar: Rows, gamma: float = 10.0, weight: float = 0.01, share: float | None = None
) -> float:
    z, eps = squashed(outputs), 1e-5
    bits = len(z[0])
    p = mean([s for row in similar for s in row]) if share is None else share

    def distance(one: Sequence[float], other: Sequence[float]) -> float:
        return bits * (eps + (1 - cosine(one, other)) / 2 * (1 - 2 * eps))

    terms = []
    for i in range(len(z)):
        for j in range(len(z)):
            d, s = distance(z[i], z[j]), similar[i][j]
            w = 1 / p if s else 1 / (1 - p)
            terms.append(w * (s * log(d / gamma) + log(1 + gamma / d)))
    corners = [log(1 + distance([abs(x) for x in row], [1.0] * bits) / gamma) for row in z]
    return mean(terms) + weight * mean(corners)


def naive_hyp2(outputs: Rows, labels: Rows, proxies: Rows, margin: float, weight: float = 0.01) -> float:
    z, p = squashed(outputs), squashed(proxies)
    near, far, pairs = [], [], []
    for i in range(len(z)):
        for c in range(len(p)):
            cos = cosine(z[i], p[c])
            (near if labels[i][c] else far).append(-cos if labels[i][c] else max(0.0, cos - margin))
        for j in range(len(z)):
            if not any(x and y for x, y in zip(labels[i], labels[j], strict=True)):
                pairs.append(max(0.0, cosine(z[i], z[j]) - margin))
    return mean(near) + mean(far) + weight * mean(pairs)


SIMILAR, TO_BANK = np.array(shares(LABELS, LABELS)), np.array(shares(LABELS, BANK_LABELS))
ONLY_SIMILAR, ONLY_DISSIMILAR = np.ones((N, N)), np.zeros((N, N))
EXCLUSIVE, EVERY = np.eye(CLASSES)[[0, 0, 1, 2, 3, 3, 3]], np.ones((N, CLASSES))

CASES: dict[str, tuple[Torch, Naive, tuple[object, ...]]] = {
    "csq": (losses.csq, naive_csq, (CENTRES, 0.05)),
    "dpsh": (losses.dpsh, naive_dpsh, (BANK, TO_BANK, 0.1)),
    "dpsh_authors": (losses.dpsh_authors, naive_dpsh_authors, (SIMILAR,)),
    "dpsh_authors, eta": (losses.dpsh_authors, naive_dpsh_authors, (SIMILAR, 0.7)),
    "hashnet": (losses.hashnet, naive_hashnet, (SIMILAR, 1.7, 10 / BITS)),
    "hashnet, only similar": (losses.hashnet, naive_hashnet, (ONLY_SIMILAR, 1.0, 10 / BITS)),
    "hashnet, only dissimilar": (losses.hashnet, naive_hashnet, (ONLY_DISSIMILAR, 1.0, 10 / BITS)),
    "dch": (losses.dch, naive_dch, (SIMILAR,)),
    "dch, keys": (losses.dch, naive_dch, (SIMILAR, 3.0, 0.4, 0.1)),
    "hyp2": (losses.hyp2, naive_hyp2, (LABELS, PROXIES, 0.1)),
    "hyp2, exclusive classes": (losses.hyp2, naive_hyp2, (EXCLUSIVE, PROXIES, -0.2)),
    "hyp2, no dissimilar pair": (losses.hyp2, naive_hyp2, (EVERY, PROXIES, 0.0)),
    "hyp2, weight": (losses.hyp2, naive_hyp2, (LABELS, PROXIES, 0.0, 0.8)),
}


def as_tensors(values: Sequence[object], dtype: torch.dtype = torch.float64) -> list[object]:
    return [torch.tensor(each, dtype=dtype) if isinstance(each, np.ndarray) else each for each in values]


def as_lists(values: Sequence[object]) -> list[object]:
    return [each.tolist() if isinstance(each, np.ndarray) else each for each in values]


def differences(function: Callable[[np.ndarray], float], at: np.ndarray, h: float = 1e-3) -> np.ndarray:
    """The gradient, by central differences of fourth order: errors near 1e-12."""
    gradient = np.zeros_like(at)
    for place in np.ndindex(*at.shape):
        step = np.zeros_like(at)
        step[place] = h
        near = function(at + step) - function(at - step)
        far = function(at + 2 * step) - function(at - 2 * step)
        gradient[place] = (8 * near - far) / (12 * h)
    return gradient


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_the_formulas(case: str) -> None:
    function, naive, values = CASES[case]
    outputs = torch.tensor(OUTPUTS, requires_grad=True)
    loss = function(outputs, *as_tensors(values))
    loss.backward()
    plain = as_lists(values)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(naive(OUTPUTS.tolist(), *plain), abs=1e-11)
    expected = differences(lambda at: naive(at.tolist(), *plain), OUTPUTS)
    assert outputs.grad is not None
    np.testing.assert_allclose(outputs.grad.numpy(), expected, rtol=0, atol=1e-9)
    assert np.abs(expected).max() > 1e-3


def test_gradient_of_proxies() -> None:
    proxies = torch.tensor(PROXIES, requires_grad=True)
    losses.hyp2(torch.tensor(OUTPUTS), torch.tensor(LABELS), proxies, 0.1).backward()
    naive = partial(naive_hyp2, OUTPUTS.tolist(), LABELS.tolist(), margin=0.1)
    expected = differences(lambda at: naive(at.tolist()), PROXIES)
    assert proxies.grad is not None
    np.testing.assert_allclose(proxies.grad.numpy(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_float32_with_similarities_of_any_type(case: str) -> None:
    function, naive, values = CASES[case]
    outputs = torch.tensor(OUTPUTS, dtype=torch.float32)
    loss = function(outputs, *as_tensors(values, torch.float32))
    assert loss.dtype is torch.float32
    assert loss.item() == pytest.approx(naive(OUTPUTS.tolist(), *as_lists(values)), rel=1e-5)
    mixed = [each.float() if isinstance(each, Tensor) else each for each in as_tensors(values)]
    if case.startswith(("dpsh_authors", "hashnet", "dch")):  # their only tensor is ``similar``
        double = function(outputs.double(), *mixed)
        exact = function(outputs.double(), *as_tensors(values))
        assert torch.equal(double, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-6, 30.0, 1e4])
@pytest.mark.parametrize("case", CASES)
def test_zeros_and_extreme_logits_are_finite(case: str, size: float, dtype: torch.dtype) -> None:
    function, _, values = CASES[case]
    outputs = torch.tensor(np.sign(OUTPUTS) * size, dtype=dtype)
    outputs[0] = 0
    outputs.requires_grad_()
    loss = function(outputs, *as_tensors(values, dtype))
    loss.backward()
    assert outputs.grad is not None
    assert torch.isfinite(loss)
    assert torch.isfinite(outputs.grad).all()
    assert outputs.grad.abs().max() < max(1e6, size)


@pytest.mark.parametrize("similar", [ONLY_SIMILAR, ONLY_DISSIMILAR])
def test_dch_with_pairs_of_one_kind(similar: np.ndarray) -> None:
    """They weigh 1, half as much as with a share of 1/2."""
    outputs = torch.tensor(OUTPUTS, requires_grad=True)
    loss = losses.dch(outputs, torch.tensor(similar), weight=0.0)
    loss.backward()
    even = naive_dch(OUTPUTS.tolist(), similar.tolist(), weight=0.0, share=0.5)
    assert loss.item() == pytest.approx(even / 2, abs=1e-11)
    assert outputs.grad is not None
    assert torch.isfinite(outputs.grad).all()


def test_csq_far_from_a_centre_grows_linearly() -> None:
    """sigmoid(2 f) as a probability would be 0, and its log infinite."""
    loss = losses.csq(torch.full((1, 3), 1e4), -torch.ones(1, 3), 0.0)
    assert loss.item() == 2e4


class TestSimilarity:
    def test_classes(self) -> None:
        one, other = torch.tensor([0, 2, 1]), torch.tensor([2, 2, 0, 3])
        expected = [[0, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
        assert losses.similarity(one, other).tolist() == expected

    def test_labels(self) -> None:
        found = losses.similarity(torch.tensor(LABELS).float(), torch.tensor(BANK_LABELS).float())
        assert found.dtype is torch.float32
        assert found.tolist() == shares(LABELS.tolist(), BANK_LABELS.tolist())
        assert found[-1].sum() == 0, "without labels, nothing is similar"

    def test_classes_are_labels_of_which_one_is_set(self) -> None:
        classes = torch.tensor([0, 3, 3, 1, 2, 0])
        labels = torch.eye(4)[classes]
        assert torch.equal(losses.similarity(classes, classes), losses.similarity(labels, labels))


class TestParts:
    def test_sign_of_zero_is_positive(self) -> None:
        assert losses.signs(torch.tensor([-2.0, -0.0, 0.0, 3.0])).tolist() == [-1, 1, 1, 1]

    def test_weights_give_both_kinds_the_same_total(self) -> None:
        weights, similar = losses.pair_weights(torch.tensor(SIMILAR)), torch.tensor(SIMILAR)
        total = (weights * similar).sum(), (weights * (1 - similar)).sum()
        torch.testing.assert_close(total[0], total[1])
        torch.testing.assert_close(total[0], torch.tensor(float(N * N)).double())

    @pytest.mark.parametrize(("share", "expected"), [(0.0, [1, 1]), (1.0, [1, 1]), (0.2, [5, 1.25])])
    def test_weights_of_a_given_share(self, share: float, expected: list[float]) -> None:
        assert losses.pair_weights(torch.tensor([1.0, 0.0]).double(), share).tolist() == expected

    def test_cosine_with_zeros_is_zero_without_gradient(self) -> None:
        vectors = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
        cosine = losses.cosines(vectors, torch.tensor([[1.0, 0.0]]))
        cosine.sum().backward()
        assert cosine[:, 0].tolist() == pytest.approx([0, 0.6])
        assert vectors.grad is not None
        assert vectors.grad[0].tolist() == [0, 0]
        assert vectors.grad[1].tolist() == pytest.approx([16 / 125, -12 / 125])


def best_distance(bits: int, dimension: int) -> int:
    """The largest minimum distance of a linear code, by trying all generators of small codes."""
    best = 0

    def extend(words: list[int], lowest: int, start: int) -> None:
        nonlocal best
        if len(words) == 2**dimension:
            best = max(best, lowest)
            return
        for new in range(start, 2**bits):
            weights = min((word ^ new).bit_count() for word in words)
            if min(lowest, weights) > best:
                extend([*words, *(word ^ new for word in words)], min(lowest, weights), new + 1)

    extend([0], bits, 1)
    return best


class TestMargin:
    @pytest.mark.parametrize(("bits", "dimension"), [(8, 1), (8, 2), (8, 3), (6, 3), (7, 3), (7, 4), (9, 2)])
    def test_small_codes_by_brute_force(self, bits: int, dimension: int) -> None:
        margin = losses.hyp2_margin(bits, 2**dimension)
        assert margin == 1 - 2 * best_distance(bits, dimension) / bits

    @pytest.mark.parametrize("bits", losses.MINIMUM_DISTANCES)
    def test_known_distances_keep_the_bounds(self, bits: int) -> None:
        known = losses.MINIMUM_DISTANCES[bits]
        for dimension, distance in enumerate(known, start=1):
            griesmer = losses._griesmer(bits, dimension)
            assert griesmer - 4 <= distance <= griesmer
            if dimension <= 4:
                assert distance == griesmer, "all binary codes of such dimensions reach the bound"
        assert list(known) == sorted(known, reverse=True)
        assert known[0] == bits
        assert known[1] == 2 * bits // 3

    @pytest.mark.parametrize(
        ("bits", "classes", "margin"),
        [  # as in the published table
            (16, 10, 0.0),
            (32, 10, 0.0),
            (32, 21, 0.0),
            (32, 80, 0.125),
            (32, 100, 0.125),
            (64, 10, -0.03125),
            (64, 200, 0.09375),
            (48, 100, 0.083333),
            (24, 38, 0.166666),
            (12, 20, 0.333333),
        ],
    )
    def test_settings_of_papers(self, bits: int, classes: int, margin: float) -> None:
        assert losses.hyp2_margin(bits, classes) == pytest.approx(margin, abs=1e-6)

    @pytest.mark.parametrize("bits", [4, 16, 30, 33, 64, 200])
    def test_grows_with_classes_and_stays_a_cosine(self, bits: int) -> None:
        margins = [losses.hyp2_margin(bits, classes) for classes in (1, 2, 3, 4, 5, 10, 16, 17, 200, 2000)]
        assert margins == sorted(margins)
        assert margins[0] == -1
        assert margins[-1] <= 1
        assert losses.hyp2_margin(bits, 17) == losses.hyp2_margin(bits, 32), "5 dimensions"
