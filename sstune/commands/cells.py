"""One attack through one gradient at one eps: a cell of a run, resumed where it was left."""

from __future__ import annotations

from dataclasses import dataclass

from sstune import attacks
from sstune.commands.outcomes import Outcomes
from sstune.interrupt import StopFlag
from sstune.quantities import parse_eps
from sstune.schema import AttackConfig


@dataclass(frozen=True)
class Cells:
    """Runs the cells of a run, and keeps their outcomes."""

    outcomes: Outcomes
    config: AttackConfig
    stop: StopFlag

    def batch_size(self, victim: attacks.Victim, attack: attacks.Attack, view: attacks.View) -> int:
        """As configured for the run or the attack, or the largest that memory holds."""
        return self.config.batch_size or attack.config.batch_size or attacks.largest_batch(victim, view)

    def run(
        self,
        key: str,
        victim: attacks.Victim,
        attack: attacks.Attack,
        view: attacks.View,
        eps: str,
        begin: attacks.Outcome | None = None,
    ) -> attacks.Outcome:
        """The outcome of the cell ``key``; saved after each batch.

        Args:
            begin: where a new cell begins, if not with nothing achieved.

        Raises:
            Stopped: a signal came; the last batch is saved.
        """
        outcome = self.outcomes.get(key) or begin or victim.begin(attack.config.save_images)
        if outcome.part == len(attack.parts):
            return outcome

        def save(outcome: attacks.Outcome) -> None:
            self.outcomes.save(key, outcome, self.stop)

        radius, size = parse_eps(eps, attack.config.norm), self.batch_size(victim, attack, view)
        outcome = attacks.robust(victim, attack, view, radius, size, outcome, save)
        self.outcomes.finish(key, outcome)
        return outcome
