"""The nearest items of a database, against sorting in plain Python."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sstune.retrieval import Codes, Labels
from sstune.schema import ClassificationConfig, HashingConfig
from sstune.tasks import build
from sstune.tasks.hashing.reference import Reference


def targets(n: int, several: bool) -> Tensor:
    drawn = torch.randint(0, 3, (n,))
    return (torch.rand(n, 4) < 0.3).float() if several else drawn


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("bits", [5, 70])
def test_hashing_ranks_by_distance_then_place(bits: int, several: bool) -> None:
    torch.manual_seed(0)
    items, queries = torch.randn(50, bits), torch.randn(4, bits)
    labels, own = targets(50, several), targets(4, several)
    task = build(HashingConfig("hashing", bits=bits), 4)
    reference = Reference(Codes.of(items), Labels.of(labels), torch.empty(0, bits), labels[:0])
    found = task.neighbours(queries, reference, 7, own)
    assert found is not None
    assert found.relevant is not None
    for query in range(4):
        distances = ((queries[query] >= 0) != (items >= 0)).sum(1).tolist()
        order = sorted(range(50), key=lambda place: (distances[place], place))[:7]
        assert found.positions[query].tolist() == order
        assert found.distances[query].tolist() == [distances[place] for place in order]
        shares = (labels * own[query]).sum(1) > 0 if several else labels == own[query]
        assert found.relevant[query].tolist() == shares[order].tolist()
    some = found.take(np.array([2, 0]))
    assert some.positions.tolist() == found.positions[[2, 0]].tolist()
    assert some.relevant is not None
    assert some.relevant.tolist() == found.relevant[[2, 0]].tolist()
    unlabelled = task.neighbours(queries, reference, 100)
    assert unlabelled is not None
    assert unlabelled.relevant is None
    assert unlabelled.take(np.array([1])).relevant is None
    assert unlabelled.positions.shape == (4, 50)


def test_classification_has_no_database() -> None:
    task = build(ClassificationConfig("classification"), 3)
    assert task.neighbours(torch.zeros(1, dtype=torch.int64), None, 5) is None
