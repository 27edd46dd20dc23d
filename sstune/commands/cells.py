"""One cell of an attack run: one attack, through one gradient source, at one eps."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

from sstune.attacks import Attack, GradientSource, Outcome, Victim, attack_batches
from sstune.commands.outcomes import Outcomes
from sstune.interrupt import StopFlag
from sstune.quantities import parse_eps


@dataclass(frozen=True)
class CellRunner:
    """Attacks ``victim`` at one eps after the other; a stopped run resumes from the last saved batch."""

    victim: Victim
    attack: Attack
    gradient_source: GradientSource
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
            InvalidAttack: see :func:`sstune.attacks.attack_batches`.
        """
        begun = self.outcomes.get(key)
        if begun is not None and begun.stage == len(self.attack.stages):
            if key not in self.outcomes.cells:  # a kill came after its last batch
                self.outcomes.finish(key, begun)
            return begun
        if begun is None and smaller is not None:
            begun = smaller.at_larger_eps()
        elif begun is None:
            begun = self.victim.begin(n_images)

        radius = parse_eps(eps, self.attack.config.norm)
        steps = attack_batches(self.victim, self.attack, self.gradient_source, radius, self.batch_size, begun)
        with closing(steps):
            for _ in steps:
                self.outcomes.save(key, begun, self.stop)
        self.outcomes.finish(key, begun)
        return begun
