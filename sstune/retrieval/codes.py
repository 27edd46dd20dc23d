"""Binary codes of images, packed, and their Hamming distances."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Words = NDArray[np.uint64]
_BLOCK = 1 << 14  # items whose words stay in a CPU's cache between two passes


@dataclass(frozen=True, eq=False)
class Codes:
    """N codes of ``bits`` bits; bit 1 stands for +1, bit 0 for -1.

    Args:
        packed: (N, ceil(bits / 8)) uint8, the most significant bit of a byte first, as ``np.packbits`` writes
            them; the unused bits of the last byte are 0.
        bits: length k of a code.

    Raises:
        ValueError: ``packed`` has another shape or dtype, or an unused bit is 1.
    """

    packed: NDArray[np.uint8]
    bits: int

    def __post_init__(self) -> None:
        if self.bits < 1 or self.packed.dtype != np.uint8 or self.packed.ndim != 2:
            raise ValueError(f"codes of {self.bits} bits: expected (N, bytes) uint8, got {self.packed.dtype}")
        expected = -(-self.bits // 8)
        if self.packed.shape[1] != expected:
            raise ValueError(f"{self.bits} bits take {expected} bytes a code, got {self.packed.shape[1]}")
        unused = (1 << (-self.bits % 8)) - 1
        if np.bitwise_and(self.packed[:, -1], unused).any():
            raise ValueError(f"codes of {self.bits} bits: unused bits of the last byte are not 0")

    @classmethod
    def of(cls, outputs: Tensor) -> Codes:
        """Signs of (N, k) real outputs f: bit 1 where f >= 0, so that sign(0) = sign(-0.0) = +1.

        Raises:
            ValueError: not (N, k) with k >= 1, or a value is NaN.
        """
        if outputs.ndim != 2:
            raise ValueError(f"expected outputs (N, k), got {tuple(outputs.shape)}")
        if outputs.isnan().any():
            raise ValueError("a network's outputs are NaN, which have no sign")
        positive = (outputs.detach() >= 0).cpu().numpy()
        return cls(np.packbits(positive, axis=1), outputs.shape[1])

    def __len__(self) -> int:
        return len(self.packed)

    def take(self, index: NDArray[Any] | Tensor | slice) -> Codes:
        """The codes at ``index``: integers, a mask or a slice."""
        return Codes(self.packed[_as_index(index)], self.bits)

    def signs(self) -> NDArray[np.int8]:
        """(N, k) of -1 and +1."""
        bits = np.unpackbits(self.packed, axis=1, count=self.bits)
        return (2 * bits.astype(np.int8) - 1).astype(np.int8)

    @cached_property
    def words(self) -> Words:
        """(N, ceil(bits / 64)) uint64, padded with zeros; each column is contiguous."""
        return as_words(self.packed)

    def distances(self, query: Words) -> NDArray[np.unsignedinteger]:
        """Hamming distances of one query to all codes.

        Args:
            query: (W,), a row of the query codes' :attr:`words`.

        Returns:
            (N,) uint8, or uint16 if ``bits + 1`` does not fit into 8 bits.
        """
        dtype: type[np.unsignedinteger] = np.uint8 if self.bits < 255 else np.uint16
        distances = np.empty(len(self), dtype)
        differing = np.empty(min(_BLOCK, len(self)), np.uint64)
        counted = np.empty(len(differing), np.uint8)
        for start in range(0, len(self), _BLOCK):
            block = distances[start : start + _BLOCK]
            n = len(block)
            for column, word in enumerate(query):
                np.bitwise_xor(self.words[start : start + n, column], word, out=differing[:n])
                if column == 0:
                    np.bitwise_count(differing[:n], out=block)
                else:
                    np.bitwise_count(differing[:n], out=counted[:n])
                    np.add(block, counted[:n], out=block)
        return distances


def as_words(packed: NDArray[np.uint8]) -> Words:
    """(N, bytes) uint8 as (N, ceil(bytes / 8)) uint64, padded with zeros; each column is contiguous."""
    n, size = packed.shape
    padded = np.zeros((n, -(-size // 8) * 8), np.uint8)
    padded[:, :size] = packed
    return np.asfortranarray(padded.view(np.uint64))


def _as_index(index: NDArray[Any] | Tensor | slice) -> Any:
    """An index of a NumPy array."""
    return index.cpu().numpy() if isinstance(index, Tensor) else index
