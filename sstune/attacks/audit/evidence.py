"""The attacks that the checks compare, on the same samples; each runs once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sstune.attacks.attack import ATTACKS, Attack
from sstune.attacks.audit import comparison
from sstune.attacks.audit.comparison import Comparison
from sstune.attacks.audit.smoothing import Smoothed
from sstune.attacks.evaluation import GradientSource, Victim
from sstune.attacks.outcome import Outcome
from sstune.datasets import evenly_spaced
from sstune.quantities import parse_eps
from sstune.schema import (
    AscentConfig,
    AttackConfig,
    AttackLoss,
    AuditConfig,
    FiniteDifferenceConfig,
    Gradient,
    MiFgsmConfig,
    NoiseConfig,
    PgdConfig,
    RaysConfig,
    SquareConfig,
)
from sstune.schema.audit import SOUGHT
from sstune.tasks import AuditProfile

STEPS = 20
LARGE = ("64/255", "1.0")  # more than any network withstands, and any image at all
FIRST = "2/255"  # where the search for an informative eps begins
SMALLEST, LARGEST = 1 / 64 / 255, parse_eps(LARGE[0])  # between which it is searched for
LITTLE, MUCH = 0.25, 0.75  # shares of what can be lost, between which an eps is informative
CLOSEST = 1.1  # the search ends once the ratio of the two nearest eps is smaller

# ``(key, victim, attack, source, eps) -> outcome``: makes an attack, or returns its saved outcome.
Run = Callable[[str, Victim, Attack, GradientSource, str], Outcome]


# ``(eps, subset) -> outcome`` of an attack on those of the audit's samples.
OtherAttack = Callable[[str, "Subset"], Outcome]


@dataclass(frozen=True)
class Subset:
    """Some of the audit's samples.

    Args:
        index: (n,) those that are attacked.
        stands_for: (m,) those that the attack's outcome is about; PGD has broken the others of them already.
        part: which of them are attacked, as a word in the cell's key.
    """

    index: Tensor
    stands_for: Tensor
    part: str = ""


@dataclass(frozen=True)
class Cell:
    """An attack that was made, on the samples of ``subset``; ``source`` is the name of a surrogate."""

    attack: str
    gradient: Gradient
    eps: str
    source: str
    outcome: Outcome
    subset: Subset


@dataclass
class Evidence:
    """Attacks on ``victim``.

    Args:
        white_box: the gradient that autograd gives for the network: the rule's, if it has feedback.
        exact: the true gradient of the same weights.
        surrogate: another network to transfer from, or None.
        has_feedback: whether ``white_box`` and ``exact`` differ.
        n_classes: of the dataset.
        eps: those configured, in ascending order.
        seed: of the attacks.
        cells: the attacks made so far, by key.
    """

    victim: Victim
    white_box: GradientSource
    exact: GradientSource
    surrogate: GradientSource | None
    has_feedback: bool
    n_classes: int
    eps: list[str]
    seed: int
    config: AuditConfig
    run: Run
    cells: dict[str, Cell] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """The number of samples."""
        return len(self.victim.clean)

    @property
    def profile(self) -> AuditProfile:
        """The losses, names and checks of the task."""
        profile = self.victim.task.audit
        assert profile is not None
        return profile

    def applies(self, check: str) -> bool:
        """Whether a check has a meaning for the task."""
        return check not in self.profile.not_applicable

    @property
    def counted(self) -> bool:
        """Whether the metric counts samples; otherwise each sample has a value of its own."""
        return self.victim.score.correct is not None

    @property
    def before(self) -> Tensor:
        """(n,) the metric of each sample without an attack: bool where samples are counted, else float64."""
        each = self.victim.score.each
        assert each is not None
        return each if self.counted else each.double()

    def left(self, outcome: Outcome) -> Tensor:
        """(n,) what an attack leaves of each sample, as :attr:`before`."""
        return outcome.robust if self.counted else (1 - outcome.achieved.double()).clamp(0, 1)

    def percent(self, outcome: Outcome) -> float:
        """The metric under an attack, in percent."""
        return comparison.percent(self.left(outcome))

    def compare(self, a: Outcome, b: Outcome) -> Comparison:
        """Attacks A and B on the same samples."""
        return comparison.compare(self.left(a), self.left(b))

    @cached_property
    def chance(self) -> float:
        """See :meth:`Task.chance`."""
        return self.victim.task.chance(self.victim.split.targets, self.victim.reference, self.n_classes)

    @cached_property
    def floor(self) -> float:
        """See :meth:`Task.floor`."""
        return self.victim.task.floor(self.victim.split.targets, self.victim.reference, self.n_classes)

    @cached_property
    def is_constant(self) -> bool:
        """Whether the network predicts the same for all samples without an attack."""
        predictions = self.victim.predictions
        return self.counted and bool((predictions == predictions[0]).all())

    @property
    def largest(self) -> str:
        """The largest configured eps."""
        return self.eps[-1]

    @cached_property
    def searched_eps(self) -> list[str]:
        """Eps until one is found at which the white box leaves about half, in ascending order.

        Where it leaves nearly everything or nearly nothing, so may any other attack. The search begins at
        :data:`FIRST`, whatever eps are configured: the verdict must not depend on them.
        """
        found = [FIRST]
        while radius := self._next_eps(found):
            found = sorted([*found, named_eps(radius)], key=parse_eps)
        return found

    @property
    def eps_at_half(self) -> str:
        """The eps at which the white box leaves about half of what can be lost: the samples that are right
        without an attack, or the metric above its floor."""
        return self._nearest_half(self.searched_eps)

    @cached_property
    def probed_eps(self) -> list[str]:
        """:attr:`eps_at_half`, doubled as long as the white box leaves :data:`SOUGHT` points, up to 64/255;
        so much may be hidden at each of them. Where robustness falls at once, also the eps before that."""
        found = [self.eps_at_half]
        if self._survival(found[0]) < LITTLE:
            found = [eps for eps in self.searched_eps if parse_eps(eps) < parse_eps(found[0])][-1:] + found
        while (radius := 2 * parse_eps(found[-1])) <= LARGEST:
            eps = named_eps(radius)
            left = self.percent(self.pgd(self.white_box, eps)) - 100 * self.floor
            if left < SOUGHT:
                break
            found.append(eps)
        return found

    def _next_eps(self, tried: Sequence[str]) -> float | None:
        """An eps that may be informative, if none of ``tried`` is: doubled, halved or between two of them;
        None if the search has ended."""
        survival = {parse_eps(eps): self._survival(eps) for eps in tried}
        if any(LITTLE <= share <= MUCH for share in survival.values()):
            return None
        small = max((radius for radius, share in survival.items() if share > MUCH), default=0.0)
        large = min((radius for radius, share in survival.items() if share < LITTLE), default=None)
        if large is None:
            return min(max(2 * small, 1 / 255), LARGEST) if small < LARGEST else None
        if large <= SMALLEST or large < CLOSEST * small:
            return None
        return large / 2 if large / 2 > small else (small + large) / 2

    def _nearest_half(self, among: Sequence[str]) -> str:
        return min(among, key=lambda eps: abs(self._survival(eps) - 0.5))

    def _survival(self, eps: str) -> float:
        """The share of what can be lost that PGD through the white box leaves; 0 if nothing can be."""
        floor = self.n * self.floor
        lost = float(self.before.sum()) - floor
        if lost <= 0:
            return 0.0
        return (float(self.left(self.pgd(self.white_box, eps)).sum()) - floor) / lost

    def pgd(self, source: GradientSource, eps: str, subset: Subset | None = None, **changes: Any) -> Outcome:
        """PGD-20 from one random start, steps of eps/4, with other settings in ``changes``."""
        name = "pgd" if "loss" in changes else self.profile.attack
        config = replace(PgdConfig(name, [eps], steps=STEPS, loss=self.profile.loss), **changes)
        label = " ".join([name, *(f"{key}={value}" for key, value in changes.items())])
        return self._attack(label, config, self._distinct(source), eps, subset)

    def pgd_for_images(self) -> dict[str, Outcome]:
        """PGD through each gradient, at the configured eps whose robust share is nearest to a half."""
        eps = self._nearest_half(self.eps)
        views = (self.white_box, self.exact) if self.has_feedback else (self.white_box,)
        return {f"{source.gradient} {eps}": self.pgd(source, eps) for source in views}

    def fgsm(self, source: GradientSource, eps: str) -> Outcome:
        """One step of size eps."""
        config = AscentConfig("fgsm", [eps], loss=self.profile.loss)
        return self._attack(self._with_loss("fgsm"), config, self._distinct(source), eps)

    def _with_loss(self, attack: str) -> str:
        """The label of an attack: with the loss, unless it is the default."""
        loss = self.profile.loss
        return attack if loss is AttackLoss.ce else f"{attack} loss={loss}"

    def transfer(self, eps: str, subset: Subset) -> Outcome:
        """MI-FGSM on the surrogate."""
        assert self.surrogate is not None
        return self._transfer(self.surrogate, eps, subset)

    def smoothed(self, eps: str, subset: Subset) -> Outcome:
        """MI-FGSM on the network's mean over noise of half the size of eps."""
        copy = Smoothed(self.victim.network, parse_eps(eps) / 2)
        source = replace(self.white_box, gradient=Gradient.surrogate, network=copy, forward=None)
        return self._transfer(replace(source, name="smoothed copy"), eps, subset)

    def _transfer(self, source: GradientSource, eps: str, subset: Subset) -> Outcome:
        loss = self.profile.loss
        config = MiFgsmConfig("mifgsm", [eps], loss=loss, steps=STEPS, early_exit=False)
        return self._attack(self._with_loss("mifgsm"), config, source, eps, subset)

    def finite_difference(self, eps: str, subset: Subset) -> Outcome:
        """PGD along finite differences."""
        loss = self.profile.unsaturated
        config = FiniteDifferenceConfig("finite_difference", [eps], steps=STEPS, loss=loss)
        return self._attack(f"finite_difference loss={loss}", config, self.white_box, eps, subset)

    def noise(self, eps: str) -> Outcome:
        """The best of 100 random perturbations, on evenly spaced samples."""
        samples = self.black_box_samples
        subset = Subset(samples, samples)
        return self._attack("noise", NoiseConfig("noise", [eps]), self._no_gradient, eps, subset)

    def square(self, eps: str, subset: Subset) -> Outcome:
        """Square."""
        config = SquareConfig("square", [eps], queries=self.config.square_queries)
        return self._attack("square", config, self._no_gradient, eps, subset)

    def rays(self, eps: str, subset: Subset) -> Outcome:
        """RayS."""
        config = RaysConfig("rays", [eps], queries=self.config.label_queries)
        return self._attack("rays", config, self._no_gradient, eps, subset)

    @property
    def black_box_samples(self) -> Tensor:
        """Indices, (at most ``audit.black_box_n``,)."""
        return evenly_spaced(self.config.black_box_n, self.n)

    def worst_case(self, eps: str) -> Tensor:
        """(n,) what every attack that was made at this eps or a smaller one leaves of each sample, as
        :attr:`before`."""
        least, radius = self.before.clone(), parse_eps(eps)
        for cell in self.cells.values():
            if parse_eps(cell.eps) <= radius:
                index = cell.subset.index
                least[index] = torch.minimum(least[index], self.left(cell.outcome))
        return least

    @property
    def _no_gradient(self) -> GradientSource:
        return replace(self.white_box, gradient=Gradient.none)

    def _distinct(self, source: GradientSource) -> GradientSource:
        """Without feedback both gradients are the same, so that attacks need not be repeated."""
        return source if self.has_feedback else self.white_box

    def _attack(
        self, label: str, config: AttackConfig, source: GradientSource, eps: str, subset: Subset | None = None
    ) -> Outcome:
        """The outcome of an attack on ``subset`` (None: all samples); made if there is none yet."""
        if subset is None:
            subset = Subset(torch.arange(self.n), torch.arange(self.n))
        key = " ".join(filter(None, [label, source.gradient, source.name, eps, subset.part]))
        if key not in self.cells:
            attack = ATTACKS[config.name](config, self.seed)
            outcome = self.run(key, self.victim.take(subset.index), attack, source, eps)
            self.cells[key] = Cell(label, source.gradient, eps, source.name, outcome, subset)
        return self.cells[key].outcome


def named_eps(radius: float) -> str:
    """A radius as people write it: "8/255"."""
    return f"{255 * radius:g}/255"
