"""What an attack has done to each sample; complete, or as far as it came before it was stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sstune.attacks.attack import NEVER


@dataclass
class Outcome:
    """Of n samples under one attack, gradient and eps.

    Args:
        achieved: (n,) float32 in [0,1], the most that the attack has achieved of its objective; 1 also where
            there was nothing to attack.
        predictions: (n, ...) what the network says of each sample where the attack achieved most.
        steps_to_success: (n,) gradient steps or queries after which the attack succeeded; -1 where it never
            did, or did not report it.
        entered: (n,) bool, not at 1 when the present stage of the attack began.
        stage: how many stages are finished.
        done: how many of the samples that entered the present stage it has been tried on.
        seconds: time spent.
        images: (k, C, H, W) uint8, adversarial images of k samples, those of :meth:`Victim.some`.
    """

    achieved: Tensor
    predictions: Tensor
    steps_to_success: Tensor
    entered: Tensor
    images: Tensor
    stage: int = 0
    done: int = 0
    seconds: float = 0.0

    @classmethod
    def begin(cls, attackable: Tensor, predictions: Tensor, images: Tensor | None = None) -> Outcome:
        """Before the attack.

        Args:
            attackable: (n,) bool, the samples that are attacked.
            predictions: (n, ...) without an attack.
            images: (k, C, H, W) uint8, those samples' own.
        """
        return cls(
            achieved=1 - attackable.float(),
            predictions=predictions.clone(),
            steps_to_success=torch.full((len(attackable),), NEVER, dtype=torch.int32),
            entered=attackable.clone(),
            images=torch.empty(0, dtype=torch.uint8) if images is None else images.clone(),
        )

    @property
    def success(self) -> Tensor:
        """(n,) bool, the attack has succeeded, or there was nothing to attack."""
        return self.achieved >= 1

    @property
    def robust(self) -> Tensor:
        """(n,) bool, the attack has achieved nothing; of classifiers, the samples still classified
        correctly."""
        return self.achieved == 0

    def update(self, index: Tensor, achieved: Tensor, predictions: Tensor, effort: Tensor) -> None:
        """Note what was achieved on the samples at ``index``, (m,), where that is more than before.

        Args:
            steps_to_success: (m,), noted where the attack succeeded.
        """
        more = achieved > self.achieved[index]
        where = index[more]
        self.achieved[where] = achieved[more]
        self.predictions[where] = predictions[more]
        self.steps_to_success[where] = torch.where(achieved[more] >= 1, effort[more].int(), NEVER)

    def at_larger_eps(self) -> Outcome:
        """Where the attack begins at a larger eps: what is broken stays so, at no further effort."""
        return Outcome(
            achieved=self.achieved.clone(),
            predictions=self.predictions.clone(),
            steps_to_success=torch.full_like(self.steps_to_success, NEVER).masked_fill_(
                self.success & (self.steps_to_success >= 0), 0
            ),
            entered=~self.success,
            images=self.images.clone(),
        )

    def n_target_hits(self, attackable: Tensor) -> int:
        """On how many of the samples that were attacked the attack has succeeded: if targeted, how many are
        taken for their target."""
        return int((self.success & attackable).sum())

    def arrays(self) -> dict[str, Any]:
        """For a file, each field by its name."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: np.asarray(value) for name, value in values.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Outcome:
        """What :meth:`arrays` gave."""
        values: dict[str, Any] = {}
        for item in fields(cls):
            array = np.asarray(arrays[item.name])
            values[item.name] = torch.from_numpy(array.copy()) if array.ndim else array.item()
        return cls(**values)
