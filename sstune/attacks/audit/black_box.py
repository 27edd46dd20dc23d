"""D7, D8, D13: whether an attack that does not use the network's gradient beats one that does."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sstune.attacks.audit.check import Check, Status
from sstune.attacks.audit.evidence import Evidence
from sstune.attacks.audit.paired import Paired, points
from sstune.attacks.outcome import Outcome

BEATEN = 0.2  # points


def d7(evidence: Evidence) -> Check:
    """Square, by scores."""
    return _black_box(evidence, "Square", evidence.square, evidence.black_box_samples)


def d13(evidence: Evidence) -> Check:
    """RayS, by labels."""
    return _black_box(evidence, "RayS", evidence.rays, evidence.label_samples)


def d8(evidence: Evidence) -> Check:
    """MI-FGSM on another network."""
    threshold = f"<= {BEATEN:g}"
    if evidence.surrogate is None:
        text = "no other network to transfer from: audit.surrogate=RUN_DIR|FILE"
        return Check(Status.not_run, None, "points", threshold, None, text)
    pairs = {eps: Paired.of(evidence.pgd(evidence.own, eps), evidence.transfer(eps)) for eps in evidence.eps}
    eps = max(pairs, key=lambda name: pairs[name].difference)
    pair = pairs[eps]
    masked = pair.difference > BEATEN and pair.significant(len(pairs))
    status = Status.masked if masked else Status.ok
    text = f"at {eps} transfer leaves {pair.second:.1f} %, PGD through the own gradient {pair.first:.1f} %"
    return Check(status, pair.difference, "points", threshold, evidence.n, text)


def _black_box(
    evidence: Evidence,
    name: str,
    attack: Callable[[str, Tensor, str], Outcome],
    samples: Tensor,
) -> Check:
    """At the largest eps, first on the samples that the white box has left, and only if the black box finds
    something there on the others, to see which of the two is the stronger."""
    eps, n = evidence.largest, len(samples)
    threshold = f"<= {BEATEN:g}"
    clean = evidence.victim.clean[samples]
    white = evidence.pgd(evidence.own, eps).right[samples]
    black = clean.clone()
    if white.any():
        black[white] = attack(eps, samples[white], "left").right
    found = points(white & ~black)
    if not found:
        text = f"at {eps} {name} breaks none of the {int(white.sum())} samples that PGD has left"
        return Check(Status.ok, 0.0, "points", threshold, n, text)
    others = clean & ~white
    if others.any():
        black[others] = attack(eps, samples[others], "others").right
    pair = Paired.of(white, black)
    masked = pair.difference > BEATEN and pair.significant()
    status = Status.masked if masked else Status.warn if found > BEATEN else Status.ok
    text = (
        f"at {eps} {name} leaves {pair.second:.1f} %, PGD through the own gradient {pair.first:.1f} %; "
        f"{name} breaks {found:.1f} points that PGD leaves"
    )
    return Check(status, pair.difference, "points", threshold, n, text)
