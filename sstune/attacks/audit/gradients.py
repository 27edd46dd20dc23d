"""D1, D2, D10: whether the network's own gradient is the true one, and whether it is there at all."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from sstune.attacks.ascent import loss_gradient
from sstune.attacks.audit.check import Check, Status
from sstune.attacks.audit.evidence import Evidence
from sstune.attacks.audit.paired import Paired, points, strongest
from sstune.attacks.evaluation import View, attacked_through
from sstune.datasets import Batch, batches
from sstune.schema import AttackLoss

GAP = 2.0  # points
COMPARED = 512
SHARE = 1.0  # percent of samples
GAIN = 1.0  # points
ALIGNED = 0.5


def d1(evidence: Evidence) -> Check:
    """The same attack through the rule's gradient and through the exact one."""
    threshold = f"<= {GAP:g} or chance"
    if not evidence.has_feedback:
        text = "no feedback: the network's gradient is the exact one"
        return Check(Status.report, 0.0, "points", threshold, evidence.n, text)
    pairs = {
        eps: Paired.of(evidence.pgd(evidence.own, eps), evidence.pgd(evidence.exact, eps))
        for eps in evidence.telling
    }
    eps, gap, status = strongest(pairs, GAP)
    text = f"at {eps} the rule's gradient leaves {gap.first:.1f} %, the exact one {gap.second:.1f} %"
    return Check(status, gap.difference, "points", threshold, evidence.n, text)


def d2(evidence: Evidence) -> Check:
    """How the two gradients of the loss with respect to the image agree."""
    threshold = f">= {ALIGNED:g}"
    if not evidence.has_feedback:
        return Check(Status.report, 1.0, "cosine", threshold, evidence.n, "one gradient only")
    cosines, signs = [], []
    for batch in _batches(evidence):
        own, exact = (_gradient(evidence, view, batch).flatten(1) for view in (evidence.own, evidence.exact))
        cosines.append(F.cosine_similarity(own, exact, eps=1e-200))
        signs.append((own.sign() == exact.sign()).double().mean(1))
    cosine, agreeing = float(torch.cat(cosines).mean()), float(torch.cat(signs).mean())
    low = cosine < ALIGNED
    text = f"signs agree in {agreeing:.0%} of the pixels"
    text += ": an attack through the rule's gradient is no evidence" if low else ""
    status = Status.warn if low else Status.report
    return Check(status, cosine, "cosine", threshold, len(torch.cat(cosines)), text)


def d10(evidence: Evidence) -> Check:
    """Gradients that vanish. Where cross-entropies are 0 in float32, their gradients are rounded and may
    mislead: then the same attack on a loss that does not saturate must not find much more."""
    gradients = (_gradient(evidence, evidence.own, batch) for batch in _batches(evidence))
    none = torch.cat([(gradient == 0).flatten(1).all(1) for gradient in gradients])
    zero, saturated = points(none), points(_losses(evidence) == 0)
    text = f"no gradient at {zero:.1f} % of the samples, softmax saturated at {saturated:.1f} %"
    gain, misled = 0.0, False
    if saturated > SHARE:
        eps = evidence.middle
        margin = evidence.pgd(evidence.own, eps, loss=AttackLoss.margin)
        pair = Paired.of(evidence.pgd(evidence.own, eps), margin)
        gain, misled = pair.difference, pair.beaten(GAIN)
        text += f"; PGD on the margin breaks {gain:.1f} points more at {eps}"
    status = Status.warn if zero > SHARE or misled else Status.ok
    return Check(status, max(zero, gain), "% or points", f"<= {SHARE:g}", len(none), text)


def _gradient(evidence: Evidence, view: View, batch: Batch) -> Tensor:
    """Of the cross-entropy with respect to the images, (N, C, H, W), float64: squares of tiny ones vanish."""
    with attacked_through(view.network, view.gradient):
        subject = view.subject(evidence.seed, "gradients")
        return loss_gradient(subject, batch.images, evidence.objective(batch))[1].double()


def _losses(evidence: Evidence) -> Tensor:
    network, found = evidence.victim.network, []
    with torch.no_grad(), attacked_through(network, evidence.own.gradient):
        for batch in _batches(evidence):
            found.append(evidence.objective(batch).loss(network(batch.images), batch.images, 0.0).cpu())
    return torch.cat(found)


def _batches(evidence: Evidence) -> Iterator[Batch]:
    """Some of the samples; what is taken of each batch is all that is kept."""
    victim = evidence.victim.some(COMPARED)
    yield from batches(victim.split, 64, victim.device)
