"""Seeds that depend on what is drawn, not on what was drawn before."""

from __future__ import annotations

import hashlib


def seed_from(*parts: int | str) -> int:
    """A stable 63-bit seed for the draw that ``parts`` name, e.g. ``(seed, "augment", epoch, step)``.

    Every stream of random numbers is keyed this way, so a resumed run, another batch size or another
    process draws the same numbers without any generator state being carried along.
    """
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
