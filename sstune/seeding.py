"""Seeds derived from names, independent of previous draws."""

from __future__ import annotations

import hashlib


def seed_from(*parts: int | str) -> int:
    """A stable 63-bit seed for the draw that ``parts`` name, e.g. ``(seed, "augment", epoch, step)``.

    All random numbers are seeded this way, so that a resumed run, another batch size or another process draws
    the same numbers without a saved generator state.
    """
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
