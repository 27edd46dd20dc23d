"""D7, D8, D13: whether an attack that does not use the network's gradient beats one that does."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sstune.attacks.audit.check import Check, Status
from sstune.attacks.audit.evidence import Evidence
from sstune.attacks.audit.paired import Paired, strongest
from sstune.attacks.outcome import Outcome

BEATEN = 0.2  # points
THRESHOLD = f"<= {BEATEN:g} or chance"

# ``(eps, samples, part) -> outcome`` of an attack on those of the audit's samples.
BlackBox = Callable[[str, Tensor, str], Outcome]


def d7(evidence: Evidence) -> Check:
    """Square, by scores."""
    return _black_box(evidence, "Square", evidence.square, evidence.black_box_samples)


def d13(evidence: Evidence) -> Check:
    """RayS, by labels."""
    return _black_box(evidence, "RayS", evidence.rays, evidence.label_samples)


def d8(evidence: Evidence) -> Check:
    """MI-FGSM on another network."""
    if evidence.surrogate is None:
        text = "no other network to transfer from: audit.surrogate=RUN_DIR|FILE"
        return Check(Status.not_run, None, "points", THRESHOLD, None, text)
    own, tried = evidence.own, evidence.telling
    pairs = {eps: Paired.of(evidence.pgd(own, eps), evidence.transfer(eps)) for eps in tried}
    eps, pair, status = strongest(pairs, BEATEN)
    text = f"at {eps} transfer leaves {pair.second:.1f} %, PGD through the own gradient {pair.first:.1f} %"
    return Check(status, pair.difference, "points", THRESHOLD, evidence.n, text)


def _black_box(evidence: Evidence, name: str, attack: BlackBox, samples: Tensor) -> Check:
    """Where it can tell most: at the largest eps at which the white box has left enough samples."""
    eps = evidence.contested(samples)
    pair, complete = against(evidence, attack, samples, eps)
    text = f"at {eps} {name} breaks {pair.only_first} of the {pair.n_first} samples that PGD has left"
    if complete:
        text += f"; it leaves {pair.second:.1f} % in all, PGD through the own gradient {pair.first:.1f} %"
    return Check(pair.judged(BEATEN), pair.difference, "points", THRESHOLD, len(samples), text)


def against(evidence: Evidence, attack: BlackBox, samples: Tensor, eps: str) -> tuple[Paired, bool]:
    """PGD through the own gradient and a black box, on ``samples``, and whether the latter had all of them.

    It is tried on those that PGD has left, and on the others only if what it breaks could matter.
    Where it could not, it counts as having broken all the others.
    """
    white = evidence.pgd(evidence.own, eps).right[samples]
    black = white.clone()
    if white.any():
        black[white] = attack(eps, samples[white], "left").right
    pair = Paired.of(white, black)
    if pair.difference <= BEATEN:
        return pair, False
    others = evidence.victim.clean[samples] & ~white
    if others.any():
        black[others] = attack(eps, samples[others], "others").right
    return Paired.of(white, black), True
