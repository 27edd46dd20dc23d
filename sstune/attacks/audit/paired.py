"""Two attacks on the same samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from sstune.attacks.audit.check import Status
from sstune.attacks.outcome import Outcome
from sstune.statistics import mcnemar

LEVEL = 0.05
SUSPECT = 0.2  # fewer than four samples that only one of two attacks breaks are no reason to doubt
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

    def beaten(self, threshold: float, level: float = LEVEL) -> bool:
        """Whether the second attack is stronger by more than ``threshold`` points, and by more than chance
        (McNemar)."""
        return self.difference > threshold and mcnemar(self.only_first, self.only_second) < level

    def judged(self, threshold: float, comparisons: int = 1) -> Status:
        """What a check says that asks whether the second attack beats the first, one of so many comparisons,
        which share the level: MASKED if it surely does, a warning if it seems to."""
        for status, level in ((Status.masked, LEVEL), (Status.warn, SUSPECT)):
            if self.beaten(threshold, level / comparisons):
                return status
        return Status.ok


def strongest(pairs: Mapping[str, Paired], threshold: float) -> tuple[str, Paired, Status]:
    """Where the second attack is ahead by most, of the places where it is so most surely."""
    found = {name: pair.judged(threshold, len(pairs)) for name, pair in pairs.items()}
    status = next(each for each in (Status.masked, Status.warn, Status.ok) if each in found.values())
    name = max((name for name in pairs if found[name] is status), key=lambda name: pairs[name].difference)
    return name, pairs[name], status


def points(share: Tensor) -> float:
    """The mean of (n,) in percent."""
    return 100 * float(share.double().mean())
