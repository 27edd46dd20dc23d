"""Two attacks on the same samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from sstune.attacks.audit.check import Status
from sstune.attacks.outcome import Outcome
from sstune.statistics import mcnemar

LEVEL = 0.05
FEWEST = 6  # so many samples that only one of two attacks breaks are significant, five are not


@dataclass(frozen=True)
class Paired:
    """How many samples only the first of two attacks leaves right, only the second, of n."""

    only_first: int
    only_second: int
    n_first: int
    n: int

    @classmethod
    def of(cls, first: Outcome | Tensor, second: Outcome | Tensor) -> Paired:
        """From outcomes, or (n,) bool of what stayed right."""
        a = first.right if isinstance(first, Outcome) else first
        b = second.right if isinstance(second, Outcome) else second
        return cls(int((a & ~b).sum()), int((b & ~a).sum()), int(a.sum()), len(a))

    @property
    def first(self) -> float:
        """Robust accuracy under the first, in percent."""
        return 100 * self.n_first / self.n

    @property
    def second(self) -> float:
        """Robust accuracy under the second, in percent."""
        return self.first - self.difference

    @property
    def difference(self) -> float:
        """First less second, in points: how much stronger the second attack is."""
        return 100 * (self.only_first - self.only_second) / self.n

    def significant(self, comparisons: int = 1) -> bool:
        """Whether the difference is more than chance (McNemar, 5 %, shared by so many comparisons)."""
        return mcnemar(self.only_first, self.only_second) < LEVEL / comparisons

    def beaten(self, threshold: float, comparisons: int = 1) -> bool:
        """Whether the second attack is stronger by more than ``threshold`` points, and not by chance."""
        return self.difference > threshold and self.significant(comparisons)


def largest(pairs: Mapping[str, Paired], threshold: float) -> tuple[str, Paired, bool]:
    """Where the second attack is the stronger by most, and whether it beats the first there or anywhere.

    Where it does so somewhere, only such places are looked at.
    """
    beaten = {name: pair for name, pair in pairs.items() if pair.beaten(threshold, len(pairs))}
    name = max(beaten or pairs, key=lambda name: pairs[name].difference)
    return name, pairs[name], bool(beaten)


def beyond(pair: Paired, threshold: float, masked: bool) -> Status:
    """What a check says whose figure is a difference: beyond the threshold but by chance, it warns."""
    if masked:
        return Status.masked
    return Status.warn if pair.difference > threshold else Status.ok


def points(share: Tensor) -> float:
    """The mean of (n,) in percent."""
    return 100 * float(share.double().mean())
