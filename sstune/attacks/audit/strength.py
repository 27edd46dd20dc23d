"""D3 to D6, D9, D14, D15: whether the attack behaves as one that works."""

from __future__ import annotations

import itertools
import math

from torch import Tensor

from sstune.attacks.audit import black_box
from sstune.attacks.audit.check import Check, Status
from sstune.attacks.audit.evidence import LARGE, Evidence
from sstune.attacks.audit.paired import Paired, points
from sstune.quantities import parse_eps
from sstune.statistics import wilson

WEAKER = 0.5  # points
CONVERGED = 1.0  # points
FAILED = 1.0  # percent left at eps 1.0 by an attack that does not work; a few may need more than 20 steps


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
    """At 64/255 nothing better than chance may be left, at 1.0, where any image will do, nothing at all.

    Images in two colours a network may honestly tell apart at 64/255 (Madry et al. 2018, arXiv 1706.06083, on
    MNIST): what is left there is held against the network only if labels alone suffice to break it.
    """
    chance = max(1 / evidence.n_classes, evidence.constant)
    large, whole = (evidence.pgd(evidence.own, eps).right for eps in LARGE)
    status = Status.warn if whole.any() else Status.ok
    text = f"{points(large):.1f} % are left at {LARGE[0]}, {points(whole):.1f} % at {LARGE[1]}"
    masked = _surely_above(whole, FAILED / 100)
    if _surely_above(large, chance):
        status = Status.warn
        pair, _ = black_box.against(evidence, evidence.rays, evidence.label_samples, LARGE[0])
        text += f"; RayS breaks {pair.only_first} of {pair.n_first} that are left at {LARGE[0]}"
        masked |= pair.beaten(black_box.BEATEN)
    figure = points(large) if points(large) > 100 * chance else points(whole)
    threshold = f"<= {100 * chance:.3g}, then 0"
    return Check(Status.masked if masked else status, figure, "%", threshold, evidence.n, text)


def _surely_above(right: Tensor, share: float) -> bool:
    """Whether more than ``share`` are right, by the lower end of the 95 % interval."""
    return wilson(int(right.sum()), len(right))[0] > share


def d6(evidence: Evidence) -> Check:
    """A larger ball contains the smaller one."""
    names = {parse_eps(eps): eps for eps in [*LARGE, *evidence.eps]}
    rises = {}
    for smaller, larger in itertools.pairwise(names[eps] for eps in sorted(names)):
        pair = Paired.of(evidence.pgd(evidence.own, larger), evidence.pgd(evidence.own, smaller))
        rises[f"{smaller} to {larger}"] = pair
    where = max(rises, key=lambda name: rises[name].difference)
    rise = max(0.0, rises[where].difference)
    status = Status.warn if any(map(_rises, rises.values())) else Status.ok
    text = f"largest rise of PGD's accuracy, from {where}"
    return Check(status, rise, "points", "<= 2 s.e.", evidence.n, text)


def _rises(pair: Paired) -> bool:
    """By more than twice the standard error of a paired difference that is none (as in McNemar's test)."""
    return pair.only_first - pair.only_second > 2 * math.sqrt(pair.only_first + pair.only_second)


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
