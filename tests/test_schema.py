from __future__ import annotations

import pytest

from sstune.schema import nearest


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("epoch", ["epochs", "seed"], "did you mean 'epochs'?"),
        ("zzz", ["b", "a"], "known: a, b"),
    ],
)
def test_nearest(name: str, known: list[str], hint: str) -> None:
    assert nearest(name, known) == hint
