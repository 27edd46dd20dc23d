"""What the checks look at: attacks on the same samples, each made once and remembered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sstune.attacks.attack import ATTACKS, Attack
from sstune.attacks.audit.paired import FEWEST
from sstune.attacks.evaluation import Victim, View
from sstune.attacks.outcome import Outcome
from sstune.datasets import Batch, spread
from sstune.quantities import parse_eps
from sstune.schema import (
    AscentConfig,
    AttackConfig,
    AttackLoss,
    AuditConfig,
    Gradient,
    MiFgsmConfig,
    NoiseConfig,
    PgdConfig,
    RaysConfig,
    SquareConfig,
)
from sstune.tasks import Goal, Objective

STEPS = 20
LARGE = ("64/255", "1.0")  # more than any network withstands, and every image whatever
SMALLEST, HUGE = 1 / 64 / 255, parse_eps(LARGE[0])
ALIKE = 1.1  # an eps is not looked for between two of a smaller ratio

# ``(key, victim, attack, view, eps) -> outcome``: makes an attack, or remembers that it was made.
Run = Callable[[str, Victim, Attack, View, str], Outcome]


@dataclass(frozen=True)
class Cell:
    """An attack that was made: with ``attack``, through ``gradient``, at ``eps``."""

    attack: str
    gradient: Gradient
    eps: str
    source: str
    outcome: Outcome
    index: Tensor  # which of the audit's samples it was made on
    among: Tensor  # which of them it stands for: the others of these PGD has broken already


@dataclass
class Evidence:
    """Attacks on ``victim``.

    Args:
        own: the gradient that autograd gives for the network: the rule's, where it has feedback.
        exact: the true gradient of the same weights.
        surrogate: another network to transfer from, if there is one.
        has_feedback: whether ``own`` and ``exact`` differ at all.
        n_classes: of the dataset.
        eps: those asked for, from small to large.
    """

    victim: Victim
    own: View
    exact: View
    surrogate: View | None
    has_feedback: bool
    n_classes: int
    eps: list[str]
    seed: int
    config: AuditConfig
    run: Run
    cells: dict[str, Cell] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """How many samples there are."""
        return len(self.victim.clean)

    @property
    def largest(self) -> str:
        """The largest eps asked for."""
        return self.eps[-1]

    @cached_property
    def telling(self) -> list[str]:
        """The eps asked for, and others until one tells, from small to large.

        Where the attack through the network's own gradient leaves nearly all or nearly nothing, so may any
        other. So there shall be an eps at which it leaves a quarter to three quarters of what was right.
        """
        found = list(self.eps)
        while radius := self._nearer(found):
            found = sorted([*found, f"{255 * radius:g}/255"], key=parse_eps)
        return found

    def _nearer(self, tried: Sequence[str]) -> float | None:
        """An eps that may tell, if none of ``tried`` does: doubled, halved or between two of them; None where
        there is nothing left to try."""
        share = {parse_eps(eps): 0.5 + self._beyond_half(eps) for eps in tried}
        if any(0.25 <= left <= 0.75 for left in share.values()):
            return None
        small = max((radius for radius, left in share.items() if left > 0.75), default=0.0)
        large = min((radius for radius, left in share.items() if left < 0.25), default=None)
        if large is None:
            return min(max(2 * small, 1 / 255), HUGE) if small < HUGE else None
        if large <= SMALLEST or large < ALIKE * small:
            return None
        return large / 2 if large / 2 > small else (small + large) / 2

    @property
    def middle(self) -> str:
        """The eps at which the attack through the network's own gradient tells most: about half are left."""
        return self._nearest_half(self.telling)

    def _nearest_half(self, among: Sequence[str]) -> str:
        return min(among, key=lambda eps: abs(self._beyond_half(eps)))

    def _beyond_half(self, eps: str) -> float:
        """Which share of the samples that were right PGD leaves, less a half."""
        return int(self.pgd(self.own, eps).right.sum()) / max(int(self.victim.clean.sum()), 1) - 0.5

    @property
    def constant(self) -> float:
        """The share of the samples that a network gets right which always gives the same answer."""
        return int(self.victim.split.labels.bincount().max()) / self.n

    def contested(self, samples: Tensor) -> str:
        """The largest eps at which the attack through the network's own gradient leaves enough of ``samples``
        for another attack to show that it is stronger; the smallest, where it never does."""
        left = {eps: int(self.pgd(self.own, eps).right[samples].sum()) for eps in self.telling}
        return next((eps for eps in reversed(self.telling) if left[eps] >= FEWEST), self.telling[0])

    def pgd(self, view: View, eps: str, **changes: Any) -> Outcome:
        """PGD-20 from one random start, steps of eps/4, unless ``changes`` say otherwise."""
        config = replace(PgdConfig("pgd", [eps], steps=STEPS), **changes)
        label = " ".join(["pgd", *(f"{key}={value}" for key, value in changes.items())])
        return self._attack(label, config, self._same(view), eps)

    def shown(self) -> dict[str, Outcome]:
        """PGD at the eps asked for that tells most, through each gradient there is; to be looked at."""
        eps = self._nearest_half(self.eps)
        views = (self.own, self.exact) if self.has_feedback else (self.own,)
        return {f"{view.gradient} {eps}": self.pgd(view, eps) for view in views}

    def fgsm(self, view: View, eps: str) -> Outcome:
        """One step of size eps."""
        return self._attack("fgsm", AscentConfig("fgsm", [eps]), self._same(view), eps)

    def transfer(self, eps: str) -> Outcome:
        """MI-FGSM on the surrogate."""
        assert self.surrogate is not None
        config = MiFgsmConfig("mifgsm", [eps], steps=STEPS, early_exit=False)
        return self._attack("mifgsm", config, self.surrogate, eps)

    def noise(self, eps: str) -> Outcome:
        """The best of 100 random perturbations, on the samples for black boxes."""
        some = self.black_box_samples
        return self._attack("noise", NoiseConfig("noise", [eps]), self._blind, eps, some, some)

    def square(self, eps: str, index: Tensor, part: str) -> Outcome:
        """Square on the samples at ``index``, which are the ``part`` of those for black boxes."""
        config = SquareConfig("square", [eps], queries=self.config.square_queries)
        return self._attack("square", config, self._blind, eps, index, self.black_box_samples, part)

    def rays(self, eps: str, index: Tensor, part: str) -> Outcome:
        """RayS on the samples at ``index``, which are the ``part`` of those for attacks by labels."""
        config = RaysConfig("rays", [eps], queries=self.config.label_queries)
        return self._attack("rays", config, self._blind, eps, index, self.label_samples, part)

    def objective(self, batch: Batch, loss: AttackLoss = AttackLoss.ce) -> Objective:
        """Of an untargeted attack on ``batch``."""
        network = self.victim.network
        return self.victim.task.objective(batch, Goal(loss), lambda: network(batch.images))

    @property
    def black_box_samples(self) -> Tensor:
        """Indices, (at most ``audit.black_box_n``,)."""
        return spread(self.config.black_box_n, self.n)

    @property
    def label_samples(self) -> Tensor:
        """Indices, (at most ``audit.label_n``,)."""
        return spread(self.config.label_n, self.n)

    def worst_case(self, eps: str) -> Tensor:
        """(n,) bool, right under every attack that was made at this eps or a smaller one."""
        right, radius = self.victim.clean.clone(), parse_eps(eps)
        for cell in self.cells.values():
            if parse_eps(cell.eps) <= radius:
                right[cell.index] &= cell.outcome.right
        return right

    @property
    def _blind(self) -> View:
        return replace(self.own, gradient=Gradient.none)

    def _same(self, view: View) -> View:
        """Without feedback there is one gradient, and its attacks need not be made twice."""
        return view if self.has_feedback else self.own

    def _attack(
        self,
        label: str,
        config: AttackConfig,
        view: View,
        eps: str,
        index: Tensor | None = None,
        among: Tensor | None = None,
        part: str = "",
    ) -> Outcome:
        key = " ".join(filter(None, [label, view.gradient, view.source, eps, part]))
        if key not in self.cells:
            everything = torch.arange(self.n)
            index, among = (everything if which is None else which for which in (index, among))
            attack = ATTACKS[config.name](config, self.seed)
            outcome = self.run(key, self.victim.take(index), attack, view, eps)
            self.cells[key] = Cell(label, view.gradient, eps, view.source, outcome, index, among)
        return self.cells[key].outcome
