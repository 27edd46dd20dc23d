"""D7, D8, D13: whether an attack that does not use the network's gradient beats one that does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from sstune.attacks.audit.check import Check, Status
from sstune.attacks.audit.evidence import Evidence
from sstune.attacks.audit.paired import Paired, beyond, largest
from sstune.attacks.outcome import Outcome

BEATEN = 0.2  # points
THRESHOLD = f"<= {BEATEN:g}"

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
    eps, pair, masked = largest(pairs, BEATEN)
    text = f"at {eps} transfer leaves {pair.second:.1f} %, PGD through the own gradient {pair.first:.1f} %"
    check = Check(beyond(pair, BEATEN, masked), pair.difference, "points", THRESHOLD, evidence.n, text)
    everything = torch.arange(evidence.n)
    return _held_against_more_starts(evidence, check, evidence.transfer(eps).right, everything, eps)


def _black_box(evidence: Evidence, name: str, attack: BlackBox, samples: Tensor) -> Check:
    """Where it can tell most: at the largest eps at which the white box has left enough samples."""
    eps = evidence.contested(samples)
    white, black = against(evidence, attack, samples, eps)
    pair = Paired.of(white, black)
    text = f"at {eps} {name} breaks {pair.only_first} of the {pair.n_first} samples that PGD has left"
    if _matters(pair):
        text += f"; it leaves {pair.second:.1f} % in all, PGD through the own gradient {pair.first:.1f} %"
    status = beyond(pair, BEATEN, pair.beaten(BEATEN))
    check = Check(status, pair.difference, "points", THRESHOLD, len(samples), text)
    return _held_against_more_starts(evidence, check, black, samples, eps)


def against(evidence: Evidence, attack: BlackBox, samples: Tensor, eps: str) -> tuple[Tensor, Tensor]:
    """What is right, (n,) bool, of ``samples`` after PGD through the own gradient, and after a black box.

    That is tried on those that PGD has left, and on the others only if what it breaks there matters.
    Where it does not, it counts as having broken all the others.
    """
    white = evidence.pgd(evidence.own, eps).right[samples]
    black = white.clone()
    if white.any():
        black[white] = attack(eps, samples[white], "left").right
    others = evidence.victim.clean[samples] & ~white
    if _matters(Paired.of(white, black)) and others.any():
        black[others] = attack(eps, samples[others], "others").right
    return white, black


def _matters(pair: Paired) -> bool:
    """Whether what the black box breaks of the samples that PGD has left could make it the stronger one."""
    return 100 * pair.only_first > BEATEN * pair.n


def _held_against_more_starts(
    evidence: Evidence, check: Check, right: Tensor, samples: Tensor, eps: str
) -> Check:
    """``check``; where another attack, which leaves ``right`` of ``samples``, is stronger by no more than
    chance, held against five starts of PGD: if they make up for it, the gradient is not at fault."""
    if check.status is not Status.warn:
        return check
    pair = Paired.of(evidence.pgd(evidence.own, eps, restarts=5).right[samples], right)
    status = beyond(pair, BEATEN, masked=False)
    text = f"{check.text}, from five starts {pair.first:.1f} %"
    return replace(check, status=status, figure=pair.difference, text=text)
