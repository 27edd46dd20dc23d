"""Outcomes of attacks on samples whose robustness, and what hides it, is known."""

from __future__ import annotations

import re

from torch import Tensor

from sstune.quantities import parse_eps


class World:
    """What attacks leave, by the keys of :attr:`Evidence.cells`, if each sample withstands any attack below a
    radius of its own, and those through the own gradient below another.

    FGSM and noise break nothing.

    Args:
        true: (n,) the radius, in units of 1/255; 0: the sample is wrong without an attack.
        apparent: (n,) the radius below which PGD fails, no smaller.
        stronger: (n,) the same of PGD with more steps, starts and another loss; None: as ``apparent``.
    """

    def __init__(self, true: Tensor, apparent: Tensor, stronger: Tensor | None = None) -> None:
        assert (true <= apparent).all()
        self.true, self.apparent = true, apparent
        self.stronger = apparent if stronger is None else stronger

    def __getitem__(self, key: str) -> Tensor:
        match = re.search(r"(\S+)(?: left| round \d)?$", key)
        assert match is not None
        radius, attack = 255 * parse_eps(match[1]), key.split()[0]
        if attack in ("fgsm", "noise"):
            return self.true > 0
        own = self.stronger if " round " in key else self.apparent
        return (self.true > 0) & (radius < (own if attack == "pgd" else self.true))
