"""D1, D2, D10: whether the network's own gradient is the true one, and whether it is there at all."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F

from sstune.attacks.audit.check import CHECK_FUNCTIONS, CheckResult
from sstune.attacks.audit.comparison import is_significantly_stronger, most_significant, percent
from sstune.attacks.audit.evidence import Evidence
from sstune.attacks.audit.hidden import EVERYTHING, LEVEL, share_found
from sstune.attacks.audit.probing import input_gradient, saturated, spread_batches
from sstune.schema.audit import SOUGHT, Status
from sstune.statistics import mcnemar

GAP = 2.0  # points
COMPARED, BATCH_SIZE = 512, 64  # samples
SHARE = 1.0  # percent of samples
GAIN = 1.0  # points
ALIGNED = 0.5


@CHECK_FUNCTIONS.register("D1")
def d1(evidence: Evidence) -> CheckResult:
    """The same attack through the own gradient, a rule's, and through the exact one."""
    threshold = f"<= {GAP:g} or chance"
    if not evidence.has_feedback:
        text = "no feedback: the network's gradient is the exact one"
        return CheckResult(Status.report, 0.0, "points", threshold, evidence.n, text)
    for eps in evidence.eps:  # for the row, not for the verdict
        evidence.pgd(evidence.exact, eps)
    pairs = {
        eps: evidence.compare(evidence.pgd(evidence.white_box, eps), evidence.pgd(evidence.exact, eps))
        for eps in evidence.probed_eps
    }
    eps, gap, status = most_significant(pairs, GAP)
    text = f"at {eps} the own gradient leaves {gap.percent_a:.1f} %, the exact one {gap.percent_b:.1f} %"
    level = LEVEL / len(pairs)
    finds = gap_found(evidence.n, level)
    if finds > SOUGHT:
        n = next(n for n in itertools.count(evidence.n, 10) if gap_found(n, level) <= SOUGHT)
        text += f"; too few samples to find {SOUGHT:g} points, attack.n={n} would do"
    return CheckResult(status, gap.points, "points", threshold, evidence.n, text, finds=finds)


def gap_found(n: int, level: float) -> float:
    """The smallest gap of D1 in points, of samples that one attack breaks and the other does not, that is
    found with 80 % power."""
    enough = (k for k in range(n + 1) if 100 * k / n > GAP and mcnemar(k, 0) < level)
    share = share_found(next(enough, n + 1), n)
    return EVERYTHING if share is None else 100 * share


@CHECK_FUNCTIONS.register("D2")
def d2(evidence: Evidence) -> CheckResult:
    """How the two gradients of the loss with respect to the image agree."""
    threshold = f">= {ALIGNED:g}"
    if not evidence.has_feedback:
        return CheckResult(Status.report, 1.0, "cosine", threshold, evidence.n, "one gradient only")
    loss, cosines, signs = evidence.profile.loss, [], []
    for batch in spread_batches(evidence.victim, COMPARED, BATCH_SIZE):
        rule, exact = (
            input_gradient(evidence.victim, source, batch, loss, evidence.seed, "gradients").flatten(1)
            for source in (evidence.white_box, evidence.exact)
        )
        cosines.append(F.cosine_similarity(rule, exact, eps=1e-200))
        signs.append((rule.sign() == exact.sign()).double().mean(1))
    cosine, agreeing = float(torch.cat(cosines).mean()), float(torch.cat(signs).mean())
    low = cosine < ALIGNED
    text = f"signs agree in {agreeing:.0%} of the pixels"
    text += ": an attack through the rule's gradient is no evidence" if low else ""
    status = Status.warn if low else Status.report
    return CheckResult(status, cosine, "cosine", threshold, len(torch.cat(cosines)), text)


@CHECK_FUNCTIONS.register("D10")
def d10(evidence: Evidence) -> CheckResult:
    """Gradients that vanish. Where a loss saturates, as cross-entropies that are 0 in float32, its gradients
    are rounded and may mislead: then the same attack on a loss that does not saturate must not find much
    more."""
    victim, source, profile = evidence.victim, evidence.white_box, evidence.profile
    gradients = (
        input_gradient(victim, source, batch, profile.loss, evidence.seed, "gradients")
        for batch in spread_batches(victim, COMPARED, BATCH_SIZE)
    )
    none = torch.cat([(gradient == 0).flatten(1).all(1) for gradient in gradients])
    zero = percent(none)
    flat = percent(saturated(victim, source, COMPARED, BATCH_SIZE))
    text = f"no gradient at {zero:.1f} % of the samples, {profile.squashing} saturated at {flat:.1f} %"
    gain, misled = 0.0, False
    if flat > SHARE:
        eps = evidence.eps_at_half
        other = evidence.pgd(source, eps, loss=profile.unsaturated)
        pair = evidence.compare(evidence.pgd(source, eps), other)
        gain, misled = pair.points, is_significantly_stronger(pair, GAIN)
        text += f"; PGD on the {profile.unsaturated} breaks {gain:.1f} points more at {eps}"
    status = Status.warn if zero > SHARE or misled else Status.ok
    return CheckResult(status, max(zero, gain), "% or points", f"<= {SHARE:g}", len(none), text)
