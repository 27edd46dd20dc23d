"""D3 to D6, D9, D14, D15: whether the attack behaves as one that works."""

from __future__ import annotations

import itertools
import math

from sstune.attacks.audit.check import Check, Status
from sstune.attacks.audit.evidence import Evidence
from sstune.attacks.audit.paired import Paired, points
from sstune.validation import parse_eps

WEAKER = 0.5  # points
CONVERGED = 1.0  # points
LARGE = ("64/255", "1.0")  # more than any network withstands, and every image whatever


def d3(evidence: Evidence) -> Check:
    """Many steps must break what one step breaks."""
    found = {
        eps: points(evidence.pgd(evidence.own, eps).right) - points(evidence.fgsm(evidence.own, eps).right)
        for eps in evidence.eps
    }
    eps = max(found, key=lambda name: found[name])
    status = Status.warn if found[eps] > WEAKER else Status.ok
    text = f"PGD less FGSM, at {eps}"
    return Check(status, found[eps], "points", f"<= {WEAKER:g}", evidence.n, text)


def d4(evidence: Evidence) -> Check:
    """Twice the steps, or five starts, must not find much more."""
    eps = evidence.middle
    usual = points(evidence.pgd(evidence.own, eps).right)
    longer = usual - points(evidence.pgd(evidence.own, eps, steps=40, step_size="eps/8").right)
    restarts = usual - points(evidence.pgd(evidence.own, eps, restarts=5).right)
    gain = max(longer, restarts)
    status = Status.warn if gain > CONVERGED else Status.ok
    text = f"at {eps} twice the steps break {longer:.1f} points more, five starts {restarts:.1f}"
    return Check(status, gain, "points", f"<= {CONVERGED:g}", evidence.n, text)


def d5(evidence: Evidence) -> Check:
    """At 64/255 nothing better than chance may be left, at 1.0, where any image will do, nothing at all."""
    chance = 100 / evidence.n_classes
    large, whole = (points(evidence.pgd(evidence.own, eps).right) for eps in LARGE)
    slack = 200 * math.sqrt(chance / 100 * (1 - chance / 100) / evidence.n)
    masked = large > chance + slack or whole > 0
    status = Status.masked if masked else Status.ok
    text = f"{large:.1f} % are left at {LARGE[0]}, {whole:.1f} % at {LARGE[1]}"
    threshold = f"<= {chance:.3g}, then 0"
    return Check(status, max(large, whole), "%", threshold, evidence.n, text)


def d6(evidence: Evidence) -> Check:
    """A larger ball contains the smaller one."""
    order = sorted([*evidence.eps, *LARGE], key=parse_eps)
    rises = {}
    for smaller, larger in itertools.pairwise(order):
        pair = Paired.of(evidence.pgd(evidence.own, larger), evidence.pgd(evidence.own, smaller))
        rises[f"{smaller} to {larger}"] = pair
    where = max(rises, key=lambda name: rises[name].difference)
    pair = rises[where]
    error = 100 * math.sqrt(pair.only_first + pair.only_second) / pair.n  # of a paired difference
    status = Status.warn if pair.difference > 2 * error else Status.ok
    text = f"largest rise of PGD's accuracy, from {where}"
    rise = max(0.0, pair.difference)
    return Check(status, rise, "points", "<= 2 s.e.", evidence.n, text)


def d9(evidence: Evidence) -> Check:
    """The best of 100 random perturbations must be weaker than the attack."""
    eps, some = evidence.middle, evidence.black_box_samples
    attack = points(evidence.pgd(evidence.own, eps).right[some])
    noise = points(evidence.noise(eps).right)
    status = Status.warn if noise <= attack + WEAKER else Status.ok
    text = f"at {eps} noise leaves {noise:.1f} %, PGD {attack:.1f} %"
    return Check(status, noise - attack, "points", f"> {WEAKER:g}", len(some), text)


def d14(evidence: Evidence) -> Check:
    """Success on the way that the last step has lost; ours is kept, a plain loop would miss it."""
    eps = evidence.middle
    kept = evidence.pgd(evidence.own, eps).right
    last = evidence.pgd(evidence.own, eps, early_exit=False).right
    lost = points(last & ~kept)
    text = f"{lost:.1f} % of the samples break on the way at {eps} and are right again at the last step"
    return Check(Status.report, lost, "%", "", evidence.n, text)


def d15(evidence: Evidence) -> Check:
    """Right under everything that was tried: the number to quote."""
    left = {eps: points(evidence.worst_case(eps)) for eps in evidence.eps}
    text = ", ".join(f"{value:.1f} % at {eps}" for eps, value in left.items())
    figure = left[evidence.largest]
    return Check(Status.report, figure, "%", "", evidence.n, text)
