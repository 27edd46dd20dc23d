"""What stronger attacks, and others, break of the samples that PGD leaves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sstune.attacks.audit.comparison import percent
from sstune.attacks.audit.evidence import Evidence, OtherAttack, Subset
from sstune.attacks.audit.hidden import LEVEL, Hidden, HiddenSamples, HiddenValues, samples_needed
from sstune.attacks.audit.probing import unattacked_loss
from sstune.attacks.outcome import Outcome
from sstune.datasets import evenly_spaced
from sstune.schema import FiniteDifferenceConfig

CONVERGED = 1.0  # points that a round of stronger attacks may break before another round follows


def strengthened(evidence: Evidence, eps: str) -> tuple[Tensor, float]:
    """What PGD and stronger attacks through the own gradient leave of each sample, as
    :attr:`Evidence.before`, and the points that the last round has found.

    First twice the steps on a loss that does not saturate, and two more starts; as long as a round finds more
    than :data:`CONVERGED` points, a longer one follows.
    """
    unsaturated = {"loss": evidence.profile.unsaturated}
    rounds: list[list[dict[str, Any]]] = [
        [{"steps": 40, "step_size": "eps/8", **unsaturated}, {"restarts": 3}],
        [{"steps": 100, "step_size": "eps/20", "restarts": 2, **unsaturated}, {"restarts": 6}],
        [{"steps": 200, "step_size": "eps/40", "restarts": 4, **unsaturated}, {"restarts": 18}],
    ]
    left, gain = evidence.left(evidence.pgd(evidence.white_box, eps)), 0.0
    for number, attacks in enumerate(rounds):
        before = left
        for changes in attacks:
            subset = those(evidence, left, f"round {number}")
            if len(subset.index):
                outcome = evidence.pgd(evidence.white_box, eps, subset, **changes)
                left = _stronger(evidence, left, outcome, subset.index)
        gain = percent(before) - percent(left)
        if gain <= CONVERGED:
            break
    return left, gain


def hidden(
    evidence: Evidence, eps: str, attack: OtherAttack, most: int | None = None, level: float = LEVEL
) -> Hidden:
    """What ``attack`` breaks of the samples that :func:`strengthened` leaves at ``eps``.

    Args:
        most: attack no more of these samples than this, nor than 5 points need; None: all.
        level: at which they are to be found.
    """
    left, _ = strengthened(evidence, eps)
    subset = those(evidence, left, "left")
    if evidence.counted and most is not None:
        wanted = samples_needed(evidence.n, len(subset.index), most, level)
        some = subset.index[evenly_spaced(wanted, len(subset.index))]
        subset = replace(subset, index=some, stands_for=some)
    if not evidence.counted:
        return HiddenValues((left - evidence.left(attack(eps, subset))).numpy())
    tried = len(subset.index)
    broken = int((~attack(eps, subset).robust).sum()) if tried else 0
    return HiddenSamples(evidence.n, int(left.sum()), tried, broken)


def estimated(evidence: Evidence, eps: str) -> tuple[Hidden, Hidden]:
    """What PGD along finite differences breaks of the samples that :func:`strengthened` leaves: of those with
    the largest loss without an attack, as many as ``audit.estimate_queries`` allows.

    Returns:
        What it breaks, which stands for these samples alone; and the same number of any samples, whose
        ``finds`` is a bound, as those with the largest loss are the first to be broken.
    """
    left, _ = strengthened(evidence, eps)
    index = those(evidence, left, "left").index
    queries = FiniteDifferenceConfig("", [eps]).rounds * evidence.victim.images(1).numel()
    loss = unattacked_loss(evidence.victim, evidence.profile.unsaturated)
    order = loss[index].argsort(descending=True)[: evidence.config.estimate_queries // queries]
    nearest = index[order].sort().values
    tried = len(nearest)
    any_such = HiddenSamples(evidence.n, len(index), tried, 0)
    if tried == 0:
        return any_such, any_such
    outcome = evidence.finite_difference(eps, Subset(nearest, nearest, "left"))
    if evidence.counted:
        return HiddenSamples(evidence.n, tried, tried, int((~outcome.robust).sum())), any_such
    differences = torch.zeros_like(left)
    differences[nearest] = left[nearest] - evidence.left(outcome)
    return HiddenValues(differences.numpy()), any_such


def those(evidence: Evidence, left: Tensor, part: str) -> Subset:
    """Of counted samples those that are ``left``, (n,) bool; of valued ones all."""
    everything = torch.arange(evidence.n)
    if not evidence.counted:
        return Subset(everything, everything)
    return Subset(left.nonzero().flatten(), everything, part)


def _stronger(evidence: Evidence, left: Tensor, outcome: Outcome, index: Tensor) -> Tensor:
    """``left``, (n,), after another attack on the samples at ``index``: of counted samples those that both
    leave; of values those of the stronger attack, as the least of each is the luck of many."""
    other = evidence.left(outcome)
    if not evidence.counted:
        return other if other.mean() < left.mean() else left
    after = left.clone()
    after[index] &= other
    return after
