"""The attacks that the checks compare, on the same samples; each runs once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sstune.attacks.attack import ATTACKS, Attack
from sstune.attacks.audit.comparison import FEWEST
from sstune.attacks.evaluation import GradientSource, Victim
from sstune.attacks.outcome import Outcome
from sstune.datasets import evenly_spaced
from sstune.quantities import parse_eps
from sstune.schema import (
    AscentConfig,
    AttackConfig,
    AuditConfig,
    Gradient,
    MiFgsmConfig,
    NoiseConfig,
    PgdConfig,
    RaysConfig,
    SquareConfig,
)

STEPS = 20
LARGE = ("64/255", "1.0")  # more than any network withstands, and any image at all
SMALLEST, LARGEST = 1 / 64 / 255, parse_eps(LARGE[0])  # between which an informative eps is searched for
CLOSEST = 1.1  # the search ends once the ratio of the two nearest eps is smaller

# ``(key, victim, attack, source, eps) -> outcome``: makes an attack, or returns its saved outcome.
Run = Callable[[str, Victim, Attack, GradientSource, str], Outcome]


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
    def largest(self) -> str:
        """The largest configured eps."""
        return self.eps[-1]

    @cached_property
    def informative_eps(self) -> list[str]:
        """The configured eps and, if needed, others until one is informative, in ascending order.

        Where the white box leaves nearly all samples or nearly none, so may any other attack. At an
        informative eps it leaves a quarter to three quarters of the correctly classified samples.
        """
        found = list(self.eps)
        while radius := self._next_eps(found):
            found = sorted([*found, f"{255 * radius:g}/255"], key=parse_eps)
        return found

    def _next_eps(self, tried: Sequence[str]) -> float | None:
        """An eps that may be informative, if none of ``tried`` is: doubled, halved or between two of them;
        None if the search has ended."""
        survival = {parse_eps(eps): self._survival(eps) for eps in tried}
        if any(0.25 <= share <= 0.75 for share in survival.values()):
            return None
        small = max((radius for radius, share in survival.items() if share > 0.75), default=0.0)
        large = min((radius for radius, share in survival.items() if share < 0.25), default=None)
        if large is None:
            return min(max(2 * small, 1 / 255), LARGEST) if small < LARGEST else None
        if large <= SMALLEST or large < CLOSEST * small:
            return None
        return large / 2 if large / 2 > small else (small + large) / 2

    @property
    def eps_at_half(self) -> str:
        """The informative eps at which the white box leaves the share of samples nearest to a half."""
        return self._nearest_half(self.informative_eps)

    def _nearest_half(self, among: Sequence[str]) -> str:
        return min(among, key=lambda eps: abs(self._survival(eps) - 0.5))

    def _survival(self, eps: str) -> float:
        """The share of the correctly classified samples that PGD through the white box leaves."""
        return int(self.pgd(self.white_box, eps).robust.sum()) / max(int(self.victim.clean.sum()), 1)

    def largest_eps_with_survivors(self, samples: Tensor) -> str:
        """The largest informative eps at which the white box leaves enough of ``samples`` for another attack
        to be significantly stronger; the smallest, if it never does."""
        left = {eps: int(self.pgd(self.white_box, eps).robust[samples].sum()) for eps in self.informative_eps}
        enough = (eps for eps in reversed(self.informative_eps) if left[eps] >= FEWEST)
        return next(enough, self.informative_eps[0])

    def pgd(self, source: GradientSource, eps: str, **changes: Any) -> Outcome:
        """PGD-20 from one random start, steps of eps/4, with other settings in ``changes``."""
        config = replace(PgdConfig("pgd", [eps], steps=STEPS), **changes)
        label = " ".join(["pgd", *(f"{key}={value}" for key, value in changes.items())])
        return self._attack(label, config, self._distinct(source), eps)

    def pgd_for_images(self) -> dict[str, Outcome]:
        """PGD through each gradient, at the configured eps whose robust share is nearest to a half."""
        eps = self._nearest_half(self.eps)
        views = (self.white_box, self.exact) if self.has_feedback else (self.white_box,)
        return {f"{source.gradient} {eps}": self.pgd(source, eps) for source in views}

    def fgsm(self, source: GradientSource, eps: str) -> Outcome:
        """One step of size eps."""
        return self._attack("fgsm", AscentConfig("fgsm", [eps]), self._distinct(source), eps)

    def transfer(self, eps: str) -> Outcome:
        """MI-FGSM on the surrogate."""
        assert self.surrogate is not None
        config = MiFgsmConfig("mifgsm", [eps], steps=STEPS, early_exit=False)
        return self._attack("mifgsm", config, self.surrogate, eps)

    def noise(self, eps: str) -> Outcome:
        """The best of 100 random perturbations, on the samples for black boxes."""
        samples = self.black_box_samples
        subset = Subset(samples, samples)
        return self._attack("noise", NoiseConfig("noise", [eps]), self._no_gradient, eps, subset)

    def square(self, eps: str, index: Tensor, part: str) -> Outcome:
        """Square on the samples at ``index``, the ``part`` of those for black boxes."""
        config = SquareConfig("square", [eps], queries=self.config.square_queries)
        subset = Subset(index, self.black_box_samples, part)
        return self._attack("square", config, self._no_gradient, eps, subset)

    def rays(self, eps: str, index: Tensor, part: str) -> Outcome:
        """RayS on the samples at ``index``, the ``part`` of those for attacks by labels."""
        config = RaysConfig("rays", [eps], queries=self.config.label_queries)
        subset = Subset(index, self.label_samples, part)
        return self._attack("rays", config, self._no_gradient, eps, subset)

    @property
    def black_box_samples(self) -> Tensor:
        """Indices, (at most ``audit.black_box_n``,)."""
        return evenly_spaced(self.config.black_box_n, self.n)

    @property
    def label_samples(self) -> Tensor:
        """Indices, (at most ``audit.label_n``,)."""
        return evenly_spaced(self.config.label_n, self.n)

    def worst_case(self, eps: str) -> Tensor:
        """(n,) bool, right under every attack that was made at this eps or a smaller one."""
        right, radius = self.victim.clean.clone(), parse_eps(eps)
        for cell in self.cells.values():
            if parse_eps(cell.eps) <= radius:
                right[cell.subset.index] &= cell.outcome.robust
        return right

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
