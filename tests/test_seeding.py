from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sstune.seeding import seed_from

PARTS = st.lists(st.one_of(st.integers(), st.text(max_size=8)), max_size=4).map(tuple)


@pytest.mark.parametrize(
    ("parts", "text", "seed"),
    [
        ((0, "pgd", 17), "(0, 'pgd', 17)", 3748520892576499530),
        ((1,), "(1,)", None),
        ((), "()", None),
        ((0, "feedback", "layer1.0.conv1", 3), "(0, 'feedback', 'layer1.0.conv1', 3)", None),
    ],
)
def test_is_the_head_of_a_sha256(parts: tuple[int | str, ...], text: str, seed: int | None) -> None:
    expected = int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) // 2
    assert seed_from(*parts) == expected
    assert seed is None or seed == expected


@given(parts=PARTS)
def test_is_a_seed_that_torch_takes(parts: tuple[int | str, ...]) -> None:
    seed = seed_from(*parts)
    assert 0 <= seed < 2**63
    assert torch.Generator().manual_seed(seed).initial_seed() == seed


@given(one=PARTS, other=PARTS)
def test_tells_parts_apart(one: tuple[int | str, ...], other: tuple[int | str, ...]) -> None:
    assert (seed_from(*one) == seed_from(*other)) == (one == other)


@pytest.mark.parametrize(
    ("one", "other"), [((1, 2), (12,)), (("1", 2), (1, "2")), ((1, 2), (2, 1)), ((0,), (0, 0))]
)
def test_tells_neighbouring_keys_apart(one: tuple[int | str, ...], other: tuple[int | str, ...]) -> None:
    assert seed_from(*one) != seed_from(*other)


def test_is_the_same_in_another_process() -> None:
    code = "from sstune.seeding import seed_from; print(seed_from(3, 'order', 1))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{seed_from(3, 'order', 1)}\n"}
