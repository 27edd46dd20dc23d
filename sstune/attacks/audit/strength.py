"""D3 to D6, D9, D14, D15: whether the attack behaves as one that works."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from sstune.attacks.audit.check import CHECK_FUNCTIONS, CheckResult
from sstune.attacks.audit.comparison import percent, surely_above
from sstune.attacks.audit.evidence import LARGE, Evidence
from sstune.attacks.audit.hidden import LEVEL, HiddenSamples, judged
from sstune.attacks.audit.survivors import hidden, strengthened
from sstune.quantities import parse_eps
from sstune.schema.audit import Status

WEAKER = 0.5  # points
MISLED = 6.0  # points; on the steepest part of its curve PGD-20 may miss 5 of an honest network
UNSETTLED = 2.0  # points
FAILED = 1.0  # percent left at eps 1.0 by an attack that does not work; a few may need more than 20 steps


@CHECK_FUNCTIONS.register("D3")
def d3(evidence: Evidence) -> CheckResult:
    """Many steps must break what one step breaks."""
    source, lead = evidence.white_box, {}
    for eps in evidence.eps:
        many, one = evidence.pgd(source, eps), evidence.fgsm(source, eps)
        lead[eps] = evidence.percent(many) - evidence.percent(one)
    eps = max(lead, key=lambda name: lead[name])
    status = Status.warn if lead[eps] > WEAKER else Status.ok
    text = f"PGD less FGSM, at {eps}"
    return CheckResult(status, lead[eps], "points", f"<= {WEAKER:g}", evidence.n, text)


@CHECK_FUNCTIONS.register("D4")
def d4(evidence: Evidence) -> CheckResult:
    """Other losses, more steps and more starts must not find much more.

    Up to :data:`MISLED` points a stronger attack by the same gradient is the luck of any network; more is a
    gradient that leads PGD astray, as that of a saturated loss or of outputs that jump.
    """
    gains, last = {}, {}
    for eps in evidence.probed_eps:
        left, last[eps] = strengthened(evidence, eps)
        gains[eps] = evidence.percent(evidence.pgd(evidence.white_box, eps)) - percent(left)
    eps = max(gains, key=lambda name: gains[name])
    status = Status.masked if gains[eps] > MISLED and is_no_luck(evidence.n, gains) else Status.ok
    text = f"at {eps} a loss that does not saturate, more steps and starts break {gains[eps]:.1f} points more"
    if status is Status.ok and (open_ := max(last.values())) > UNSETTLED:
        status = Status.warn
        text += f"; the longest of them still found {open_:.1f}"
    return CheckResult(status, gains[eps], "points", f"<= {MISLED:g}", evidence.n, text)


def is_no_luck(n: int, gains: Mapping[str, float]) -> bool:
    """Whether the largest of several gains, in points of n samples, is significantly above half of
    :data:`MISLED`."""
    broken = round(max(gains.values()) * n / 100)
    return HiddenSamples(n, n, n, broken, MISLED / 2).p <= LEVEL / len(gains)


@CHECK_FUNCTIONS.register("D5")
def d5(evidence: Evidence) -> CheckResult:
    """At 64/255 nothing better than chance may be left, at 1.0, where any image will do, nothing at all (of a
    metric that cannot fall to 0: chance).

    Images in two colours a network may honestly tell apart at 64/255 (Madry et al. 2018, arXiv 1706.06083, on
    MNIST): what is left there is held against the network only if labels alone suffice to break it. Of a
    network that gives all images one answer, the samples with this answer stay right at any eps.
    """
    chance, floor = evidence.chance, evidence.floor
    large, whole = (evidence.left(evidence.pgd(evidence.white_box, eps)) for eps in LARGE)
    if evidence.is_constant:
        floor = chance = max(chance, percent(evidence.before) / 100)
    above = surely_above(large, chance)
    status = Status.warn if above or surely_above(whole, floor) else Status.ok
    text = f"{percent(large):.1f} % are left at {LARGE[0]}, {percent(whole):.1f} % at {LARGE[1]}"
    masked = surely_above(whole, floor + FAILED / 100)
    if above and not evidence.applies("D13"):
        text += "; no black box tells whether the gradient is to blame"
    elif above:
        level = LEVEL / len(evidence.probed_eps)  # as D13, whose attack it may be
        found = hidden(evidence, LARGE[0], evidence.rays, evidence.config.label_n, level)
        text += f"; RayS breaks {found.points:.1f} points of them"
        masked |= judged([found])[1] is Status.masked
    figure = percent(large) if percent(large) > 100 * chance else percent(whole)
    threshold = f"<= {100 * chance:.3g}" + ("" if floor == chance else f", then {100 * floor:.3g}")
    return CheckResult(Status.masked if masked else status, figure, "%", threshold, evidence.n, text)


@CHECK_FUNCTIONS.register("D6")
def d6(evidence: Evidence) -> CheckResult:
    """A larger ball contains the smaller one."""
    names = {parse_eps(eps): eps for eps in [*LARGE, *evidence.eps]}
    rises = {}
    for smaller, larger in itertools.pairwise(names[eps] for eps in sorted(names)):
        pair = [evidence.pgd(evidence.white_box, eps) for eps in (larger, smaller)]
        rises[f"{smaller} to {larger}"] = evidence.compare(*pair)
    where = max(rises, key=lambda name: rises[name].points)
    rise = max(0.0, rises[where].points)
    status = Status.warn if any(pair.z > 2 for pair in rises.values()) else Status.ok
    text = f"largest rise of PGD's {evidence.victim.task.metric}, from {where}"
    return CheckResult(status, rise, "points", "<= 2 s.e.", evidence.n, text)


@CHECK_FUNCTIONS.register("D9")
def d9(evidence: Evidence) -> CheckResult:
    """The best of 100 random perturbations must be weaker than the attack."""
    eps, some = evidence.eps_at_half, evidence.black_box_samples
    attack = percent(evidence.left(evidence.pgd(evidence.white_box, eps))[some])
    noise = evidence.percent(evidence.noise(eps))
    status = Status.warn if noise <= attack + WEAKER else Status.ok
    text = f"at {eps} noise leaves {noise:.1f} %, PGD {attack:.1f} %"
    return CheckResult(status, noise - attack, "points", f"> {WEAKER:g}", len(some), text)


@CHECK_FUNCTIONS.register("D14")
def d14(evidence: Evidence) -> CheckResult:
    """Samples adversarial at an earlier step but not at the last, which a plain loop does not count."""
    eps = evidence.eps_at_half
    kept = evidence.pgd(evidence.white_box, eps).robust
    last = evidence.pgd(evidence.white_box, eps, early_exit=False).robust
    lost = percent(last & ~kept)
    text = f"{lost:.1f} % of the samples break on the way at {eps} and are right again at the last step"
    return CheckResult(Status.report, lost, "%", "", evidence.n, text)


@CHECK_FUNCTIONS.register("D15")
def d15(evidence: Evidence) -> CheckResult:
    """What all attacks of the audit leave of each sample: the figure to report."""
    left = {eps: percent(evidence.worst_case(eps)) for eps in evidence.eps}
    text = ", ".join(f"{value:.1f} % at {eps}" for eps, value in left.items())
    figure = left[evidence.largest]
    return CheckResult(Status.report, figure, "%", "", evidence.n, text)
