"""What the audit for gradient masking (``attack=audit``) needs to know of a task."""

from __future__ import annotations

from dataclasses import dataclass

from sstune.schema import AttackLoss


@dataclass(frozen=True)
class AuditProfile:
    """The losses, names and checks of a task's audit.

    Args:
        task: the task's name.
        attack: the attack that the checks call PGD: ``pgd``, or one that is PGD on ``loss``.
        loss: the loss that all gradient attacks increase.
        unsaturated: a loss whose gradient does not vanish where that of ``loss`` may.
        squashing: the function whose saturation :meth:`Task.saturated` measures, in words.
        outputs: the network's outputs, in words.
        not_applicable: ids of the checks that have no meaning for the task.
    """

    task: str
    attack: str
    loss: AttackLoss
    unsaturated: AttackLoss
    squashing: str
    outputs: str
    not_applicable: tuple[str, ...] = ()
