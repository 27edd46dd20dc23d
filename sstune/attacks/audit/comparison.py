"""Whether one attack is stronger than another on the same samples, and whether that may be chance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from sstune.attacks.audit.hidden import LEVEL, SUSPECT
from sstune.schema.audit import Status
from sstune.statistics import PairedValues, Pairing, mean_interval, wilson


class Comparison(Protocol):
    """What attacks A and B leave of a metric, on the same samples."""

    @property
    def percent_a(self) -> float:
        """The metric under A, in percent."""

    @property
    def percent_b(self) -> float:
        """The metric under B, in percent."""

    @property
    def points(self) -> float:
        """The metric under A less that under B, in percentage points."""

    @property
    def p(self) -> float:
        """Two-sided p of no difference: McNemar's test of counts, a permutation test of values."""

    @property
    def z(self) -> float:
        """The difference in standard errors of a difference that is none."""


def pairing(a: Tensor, b: Tensor) -> Pairing:
    """Which samples attacks A and B leave correct, (n,) bool."""
    return Pairing.of(a.numpy(), b.numpy())


def compare(a: Tensor, b: Tensor) -> Comparison:
    """What attacks A and B leave of each sample: (n,) bool where samples are counted, else in [0,1]."""
    return pairing(a, b) if a.dtype is torch.bool else PairedValues(a.double().numpy(), b.double().numpy())


def is_significantly_stronger(pair: Comparison, threshold: float, level: float = LEVEL) -> bool:
    """Whether attack B leaves less than A, by more than ``threshold`` points and with a p-value below
    ``level``."""
    return pair.points > threshold and pair.p < level


def status(pair: Comparison, threshold: float, comparisons: int = 1) -> Status:
    """Masked if attack B is significantly stronger than A, a warning if it is so at level :data:`SUSPECT`.

    Args:
        comparisons: the number of pairs compared, which share the level (Bonferroni).
    """
    for found, level in ((Status.masked, LEVEL), (Status.warn, SUSPECT)):
        if is_significantly_stronger(pair, threshold, level / comparisons):
            return found
    return Status.ok


def most_significant(pairs: Mapping[str, Comparison], threshold: float) -> tuple[str, Comparison, Status]:
    """Of the pairs with the most serious status, the one with the largest difference, and its name."""
    found = {name: status(pair, threshold, len(pairs)) for name, pair in pairs.items()}
    worst = next(each for each in (Status.masked, Status.warn, Status.ok) if each in found.values())
    name = max((name for name in pairs if found[name] is worst), key=lambda name: pairs[name].points)
    return name, pairs[name], worst


def percent(values: Tensor) -> float:
    """The mean of (n,) in percent."""
    return 100 * float(values.double().mean())


def surely_above(values: Tensor, share: float) -> bool:
    """Whether the mean of (n,) is above ``share``, by the lower end of its 95 % interval."""
    if values.dtype is torch.bool:
        return wilson(int(values.sum()), len(values))[0] > share
    return mean_interval(values.double().numpy())[0] > share
