"""D7, D8, D13: whether an attack that does not use the network's gradient beats one that does."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sstune.attacks.audit.check import CHECK_FUNCTIONS, CheckResult
from sstune.attacks.audit.comparison import most_significant, pairing, status
from sstune.attacks.audit.evidence import Evidence
from sstune.attacks.outcome import Outcome
from sstune.schema.audit import Status
from sstune.statistics import Pairing

MARGIN = 0.2  # points by which a black box may be ahead
THRESHOLD = f"<= {MARGIN:g} or chance"

# ``(eps, samples, part) -> outcome`` of an attack on those of the audit's samples.
BlackBox = Callable[[str, Tensor, str], Outcome]


@CHECK_FUNCTIONS.register("D7")
def d7(evidence: Evidence) -> CheckResult:
    """Square, by scores."""
    return _black_box(evidence, "Square", evidence.square, evidence.black_box_samples)


@CHECK_FUNCTIONS.register("D13")
def d13(evidence: Evidence) -> CheckResult:
    """RayS, by labels."""
    return _black_box(evidence, "RayS", evidence.rays, evidence.label_samples)


@CHECK_FUNCTIONS.register("D8")
def d8(evidence: Evidence) -> CheckResult:
    """MI-FGSM on another network."""
    if evidence.surrogate is None:
        text = "no other network to transfer from: audit.surrogate=RUN_DIR|FILE"
        return CheckResult(Status.not_run, None, "points", THRESHOLD, None, text)
    pairs = {
        eps: evidence.compare(evidence.pgd(evidence.white_box, eps), evidence.transfer(eps))
        for eps in evidence.informative_eps
    }
    eps, pair, found = most_significant(pairs, MARGIN)
    text = f"at {eps} transfer leaves {pair.percent_b:.1f} %, "
    text += f"PGD through the own gradient {pair.percent_a:.1f} %"
    return CheckResult(found, pair.points, "points", THRESHOLD, evidence.n, text)


def _black_box(evidence: Evidence, name: str, attack: BlackBox, samples: Tensor) -> CheckResult:
    """At the largest eps at which the white box leaves enough samples for a significant difference."""
    eps = evidence.largest_eps_with_survivors(samples)
    pair, complete = compare_black_box(evidence, attack, samples, eps)
    left = pair.both + pair.only_a
    text = f"at {eps} {name} breaks {pair.only_a} of the {left} samples that PGD has left"
    if complete:
        text += f"; it leaves {pair.percent_b:.1f} % in all, "
        text += f"PGD through the own gradient {pair.percent_a:.1f} %"
    return CheckResult(status(pair, MARGIN), pair.points, "points", THRESHOLD, len(samples), text)


def compare_black_box(
    evidence: Evidence, attack: BlackBox, samples: Tensor, eps: str
) -> tuple[Pairing, bool]:
    """PGD through the own gradient (A) and a black box (B) on ``samples``.

    The black box attacks the samples that PGD leaves, and the others only if its lead there exceeds
    :data:`MARGIN`; otherwise they count as broken by both.

    Returns:
        The pairing, and whether the black box attacked all samples.
    """
    white = evidence.pgd(evidence.white_box, eps).robust[samples]
    black = white.clone()
    if white.any():
        black[white] = attack(eps, samples[white], "left").robust
    pair = pairing(white, black)
    if pair.points <= MARGIN:
        return pair, False
    others = evidence.victim.clean[samples] & ~white
    if others.any():
        black[others] = attack(eps, samples[others], "others").robust
    return pairing(white, black), True
