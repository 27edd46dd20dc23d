"""Whether one attack is stronger than another on the same samples, and whether that may be chance."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sstune.attacks.outcome import Outcome
from sstune.schema.audit import Status
from sstune.statistics import Pairing, mcnemar

LEVEL = 0.05
SUSPECT = 0.2  # a warning needs at least four samples that only one of two attacks breaks
FEWEST = 6  # the fewest samples that only one of two attacks breaks that are significant at LEVEL


def pairing(a: Outcome | Tensor, b: Outcome | Tensor) -> Pairing:
    """Which samples attacks A and B leave correctly classified, from outcomes or (n,) bool."""
    right_a, right_b = (each.robust if isinstance(each, Outcome) else each for each in (a, b))
    return Pairing.of(right_a.numpy(), right_b.numpy())


def is_significantly_stronger(pair: Pairing, threshold: float, level: float = LEVEL) -> bool:
    """Whether attack B leaves fewer samples than A, by more than ``threshold`` points and with a p-value of
    McNemar's test below ``level``."""
    return pair.points > threshold and mcnemar(pair.only_a, pair.only_b) < level


def status(pair: Pairing, threshold: float, comparisons: int = 1) -> Status:
    """Masked if attack B is significantly stronger than A, a warning if it is so at level :data:`SUSPECT`.

    Args:
        comparisons: the number of pairs compared, which share the level (Bonferroni).
    """
    for found, level in ((Status.masked, LEVEL), (Status.warn, SUSPECT)):
        if is_significantly_stronger(pair, threshold, level / comparisons):
            return found
    return Status.ok


def most_significant(pairs: Mapping[str, Pairing], threshold: float) -> tuple[str, Pairing, Status]:
    """Of the pairs with the most serious status, the one with the largest difference, and its name."""
    found = {name: status(pair, threshold, len(pairs)) for name, pair in pairs.items()}
    worst = next(each for each in (Status.masked, Status.warn, Status.ok) if each in found.values())
    name = max((name for name in pairs if found[name] is worst), key=lambda name: pairs[name].points)
    return name, pairs[name], worst


def percent(flags: Tensor) -> float:
    """The mean of (n,) in percent."""
    return 100 * float(flags.double().mean())
