"""One cell of an attack run: one attack, through one gradient source, at one eps."""

from __future__ import annotations

from dataclasses import dataclass

from sstune.attacks import Attack, Outcome, Victim, View, robust
from sstune.commands.outcomes import Outcomes
from sstune.interrupt import StopFlag
from sstune.quantities import parse_eps


@dataclass(frozen=True)
class CellRunner:
    """Attacks ``victim`` at one eps after the other; a stopped run resumes from the last saved batch."""

    victim: Victim
    attack: Attack
    view: View
    batch_size: int
    outcomes: Outcomes
    stop: StopFlag

    def run(self, key: str, eps: str, n_images: int = 0, smaller: Outcome | None = None) -> Outcome:
        """The outcome of a cell; it is saved after each batch, and returned if it is complete already.

        Args:
            key: name of the cell in the run's outcomes.
            eps: as people write it, in the attack's norm.
            n_images: the number of adversarial images to keep.
            smaller: outcome at a smaller eps; samples that it broke are not attacked again.

        Raises:
            Stopped: a signal came; the last batch is saved.
            InvalidAttack: see :func:`sstune.attacks.robust`.
        """
        begun = self.outcomes.get(key)
        if begun is not None and begun.part == len(self.attack.parts):
            return begun
        if begun is None and smaller is not None:
            begun = smaller.at_larger_eps()
        elif begun is None:
            begun = self.victim.begin(n_images)

        def save(outcome: Outcome) -> None:
            self.outcomes.save(key, outcome, self.stop)

        radius = parse_eps(eps, self.attack.config.norm)
        outcome = robust(self.victim, self.attack, self.view, radius, self.batch_size, begun, save)
        self.outcomes.finish(key, outcome)
        return outcome
