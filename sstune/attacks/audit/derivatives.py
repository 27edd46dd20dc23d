"""D16: whether the own gradient predicts how the loss changes, by finite differences."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sstune.attacks.ascent import loss_gradient, random_in_ball
from sstune.attacks.audit.check import CHECK_FUNCTIONS, CheckResult
from sstune.attacks.audit.comparison import percent
from sstune.attacks.audit.evidence import Evidence
from sstune.attacks.audit.hidden import LEVEL, judged
from sstune.attacks.audit.probing import objective
from sstune.attacks.audit.survivors import estimated
from sstune.attacks.evaluation import GradientSource, Victim, gradient_mode
from sstune.copying import to_device
from sstune.datasets import Batch, batches, evenly_spaced
from sstune.quantities import parse_eps
from sstune.schema import AttackLoss, Norm
from sstune.schema.audit import SOUGHT, Status

LOOKED_AT = 32  # samples at each eps
DIRECTIONS = 16
SMALL = {torch.float64: 1e-6, torch.float32: 1e-3}  # of the images; rounding of the loss stays far below
EXACT = 0.95  # of a derivative nothing but kinks and rounding is missing
USEFUL = 0.6  # where a step of the attack ends, the loss may have bent
AMISS = 5.0  # percent of the samples
BATCH_SIZE = 64


@dataclass(frozen=True)
class Derivatives:
    """Directional derivatives of the loss by autograd and by central differences.

    Args:
        autograd: (N, K) gradient times direction, of N samples in K random directions.
        differences: (N, K) central differences over the same steps.
    """

    autograd: Tensor
    differences: Tensor

    @property
    def correlation(self) -> Tensor:
        """(N,) between the two over directions, in [-1, 1], whose means are 0; 1 where both are 0 in all."""
        product = (self.autograd * self.differences).sum(1)
        norms = self.autograd.norm(dim=1) * self.differences.norm(dim=1)
        flat = (self.autograd.abs() + self.differences.abs()).amax(1) == 0
        return torch.where(flat, 1.0, product / norms.clamp_min(torch.finfo(norms.dtype).tiny))


@CHECK_FUNCTIONS.register("D16")
def d16(evidence: Evidence) -> CheckResult:
    """A sample is amiss if derivatives by autograd and by differences disagree over a step near 0, or have
    little in common over a step of the attack. If samples are, an attack along differences tells whether
    their gradient hides anything."""
    probed = [
        eps for eps in evidence.probed_eps if evidence.left(evidence.pgd(evidence.white_box, eps)).any()
    ]
    if not probed:
        return CheckResult(Status.ok, 0.0, "% amiss", f"<= {AMISS:g}", 0, "PGD leaves no sample to look at")
    pairs = {eps: derivatives_at(evidence, eps) for eps in probed}
    each = {eps: (near.correlation, far.correlation) for eps, (near, far) in pairs.items()}
    amiss = {eps: percent(~((near >= EXACT) & (far >= USEFUL))) for eps, (near, far) in each.items()}
    near, far = (torch.cat([pair[at] for pair in each.values()]).median() for at in (0, 1))
    share = max(amiss.values())
    text = f"derivatives by autograd and by differences correlate with {near:.3f} over a step near 0, "
    text += f"with {far:.3f} over a step of the attack (medians)"
    n, threshold = LOOKED_AT * len(pairs), f"<= {AMISS:g}"
    if share <= AMISS:
        return CheckResult(Status.ok, share, "% amiss", threshold, n, text)
    found = {eps: estimated(evidence, eps) for eps in pairs if amiss[eps] > AMISS}
    at, status = judged(broken for broken, _ in found.values())
    eps, (worst, _) = list(found.items())[at]
    text += f"; at {eps} PGD along differences breaks {worst.points:.1f} points that PGD leaves"
    level = LEVEL / len(found)
    finds = max(any_such.finds(level) for _, any_such in found.values())
    if finds > SOUGHT:
        text += f"; too few samples to find {SOUGHT:g} points: more audit.estimate_queries, or attack.n"
    return CheckResult(status, share, "% amiss", threshold, n, text, finds=finds)


def derivatives_at(evidence: Evidence, eps: str) -> tuple[Derivatives, Derivatives]:
    """Of samples that PGD leaves at ``eps``: over a step near 0, and over PGD's own step, eps/4."""
    left = evidence.left(evidence.pgd(evidence.white_box, eps)).nonzero().flatten()
    some = left[evenly_spaced(LOOKED_AT, len(left))]
    radius = parse_eps(eps)
    test = DerivativeTest(
        evidence.victim.take(some),
        evidence.white_box,
        evidence.profile.unsaturated,
        radius,
        evidence.seed,
    )
    try:
        near = test.in_float64()(SMALL[torch.float64])
    except (AssertionError, RuntimeError, TypeError, ValueError):  # a network for float32 only
        near = test(SMALL[torch.float32])
    return near, test(radius / 4)


@dataclass(frozen=True)
class DerivativeTest:
    """Derivatives at random points of the ball around a victim's images, in random directions.

    Points of the ball, since on the grid of 8-bit images a loss may have kinks. Each pixel of a direction is
    1 or -1.

    Args:
        source: of the gradient; its network computes the differences, too.
        loss: that is differentiated.
        eps: radius of the ball.
        dtype: of the network's parameters, and of the images.
    """

    victim: Victim
    source: GradientSource
    loss: AttackLoss
    eps: float
    seed: int
    dtype: torch.dtype = torch.float32

    def in_float64(self) -> DerivativeTest:
        """The same with a copy of the network in float64."""
        network = copy.deepcopy(self.source.network).double()
        return replace(self, source=replace(self.source, network=network, forward=None), dtype=torch.float64)

    def __call__(self, step: float) -> Derivatives:
        """Differences over ``step`` to both sides."""
        found = [torch.empty(2, 0, DIRECTIONS, dtype=torch.float64)]
        with gradient_mode(self.source.network, self.source.gradient):
            for batch in batches(self.victim.split, BATCH_SIZE, self.victim.device):
                named = replace(batch, samples=self.victim.samples[batch.samples])
                found.append(self._of(named, step).double().cpu())
        return Derivatives(*torch.cat(found, 1))

    def _of(self, batch: Batch, step: float) -> Tensor:
        """(2, N, K), derivatives by autograd and by differences."""
        margin = min(step, 0.5)  # both images of a difference shall be images
        points = batch.images.to(self.dtype) + self.eps * self._noise(batch, "point")
        points = points.clamp(margin, 1 - margin)
        wanted = objective(self.victim, batch, self.loss)
        gradient = loss_gradient(self.source.model(self.seed, "derivatives"), points, wanted)[1]
        columns = []
        for number in range(DIRECTIONS):
            direction = self._noise(batch, "direction", number).sign()
            with torch.no_grad():
                ahead, behind = (
                    wanted.loss(self.source.network(images), images, 0.0)
                    for images in (points + step * direction, points - step * direction)
                )
            columns.append(
                torch.stack([(gradient * direction).flatten(1).sum(1), (ahead - behind) / (2 * step)])
            )
        return torch.stack(columns, 2)

    def _noise(self, batch: Batch, *key: int | str) -> Tensor:
        """Uniform in [-1, 1], keyed by sample."""
        shape, keys = batch.images.shape, ("derivatives", *key)
        drawn = random_in_ball(shape, Norm.Linf, self.seed, keys, batch.samples)
        return to_device(drawn, batch.images.device).to(self.dtype)
