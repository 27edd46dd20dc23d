from __future__ import annotations

import base64

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sstune.packing import pack, unpack


@given(st.lists(st.booleans(), max_size=200))
def test_what_is_packed_is_what_is_unpacked(flags: list[bool]) -> None:
    text = pack(flags)
    assert unpack(text, len(flags)).tolist() == flags
    assert unpack(text, len(flags)).dtype == bool
    assert len(base64.b64decode(text)) == -(-len(flags) // 8)
    assert pack(torch.tensor(flags, dtype=torch.bool).numpy()) == text


def test_the_format_is_bits_first_sample_first() -> None:
    """Written down: rows that are committed hold it."""
    flags = [True, False, False, False, False, False, True, True, False, True]
    assert base64.b64decode(pack(flags)) == bytes([0b10000011, 0b01000000])
    assert pack(flags) == "g0A="
    assert pack([]) == ""


@given(st.integers(0, 100), st.integers(0, 100))
def test_the_outcomes_of_another_number_of_samples_are_refused(n: int, other: int) -> None:
    text = pack(np.ones(n, dtype=bool))
    if -(-n // 8) == -(-other // 8):
        assert len(unpack(text, other)) == other
    else:
        with pytest.raises(ValueError, match=f"{-(-n // 8)} bytes are not the outcomes of {other} samples"):
            unpack(text, other)


@pytest.mark.parametrize("text", ["g0A", "g0A=!", "ö"])
def test_what_is_no_base64_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011, the message is Python's
        unpack(text, 10)
