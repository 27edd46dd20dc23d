from __future__ import annotations

import base64

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sstune.packing import pack, pack_values, unpack, unpack_values


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


@given(st.lists(st.floats(0, 1, width=32), max_size=50))
def test_values_are_unpacked_as_they_were(values: list[float]) -> None:
    assert unpack_values(pack_values(values), len(values)).tolist() == values


def test_the_format_of_values_is_float32_first_sample_first() -> None:
    """Written down, as for bits: 1.0 is 3f800000, 0.5 is 3f000000, the last byte first."""
    assert base64.b64decode(pack_values([1.0, 0.5])) == bytes([0, 0, 0x80, 0x3F, 0, 0, 0, 0x3F])
    with pytest.raises(ValueError, match="8 bytes are not the values of 3 samples"):
        unpack_values(pack_values([1.0, 0.5]), 3)


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), float("inf")])
def test_a_value_outside_0_to_1_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="outside"):
        unpack_values(pack_values([0.5, value]), 2)
