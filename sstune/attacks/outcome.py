"""The outcome of an attack for each sample, complete or in progress."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sstune.attacks.attack import NEVER

UNTRIED = -1.0  # below every result, so that the first one counts


@dataclass
class Outcome:
    """The outcome for n samples of one attack through one gradient at one eps.

    Args:
        achieved: (n,) float32 in [0,1], the most that the attack has achieved of its objective; 1 also where
            there was nothing to attack; -1 where it has not been tried yet.
        predictions: (n, ...) the network's predictions where the attack achieved most.
        steps_to_success: (n,) gradient steps or queries after which the attack succeeded; -1 where it never
            did, or did not report it.
        zero_gradients: (n,) float32, the share of the attack's gradients that were zero in every pixel, where
            it achieved most; -1 where it reports none.
        entered: (n,) bool, not at 1 when the present stage of the attack began.
        stage: how many stages are finished.
        done: how many of the samples that entered the present stage it has been tried on.
        seconds: time spent.
        images: (k, C, H, W) uint8, adversarial images of k samples, those of :meth:`Victim.some`.
    """

    achieved: Tensor
    predictions: Tensor
    steps_to_success: Tensor
    zero_gradients: Tensor
    entered: Tensor
    images: Tensor
    stage: int = 0
    done: int = 0
    seconds: float = 0.0

    @classmethod
    def begin(cls, attackable: Tensor, predictions: Tensor, images: Tensor | None = None) -> Outcome:
        """The outcome before an attack.

        Args:
            attackable: (n,) bool, the samples that are attacked.
            predictions: (n, ...) without an attack.
            images: (k, C, H, W) uint8, those samples' own.
        """
        return cls(
            achieved=torch.where(attackable, UNTRIED, 1.0),
            predictions=predictions.clone(),
            steps_to_success=torch.full((len(attackable),), NEVER, dtype=torch.int32),
            zero_gradients=torch.full((len(attackable),), float(NEVER)),
            entered=attackable.clone(),
            images=torch.empty(0, dtype=torch.uint8) if images is None else images.clone(),
        )

    @property
    def success(self) -> Tensor:
        """(n,) bool, the attack has succeeded, or there was nothing to attack."""
        return self.achieved >= 1

    @property
    def robust(self) -> Tensor:
        """(n,) bool, the attack has achieved nothing: a classifier still classifies the sample
        correctly."""
        return self.achieved <= 0

    def update(
        self,
        index: Tensor,
        achieved: Tensor,
        predictions: Tensor,
        steps: Tensor,
        zero_gradients: Tensor | None = None,
    ) -> None:
        """Update the samples at ``index``, (m,), on which more was achieved than before.

        Args:
            steps: (m,) gradient steps or queries, kept where the attack succeeded.
            zero_gradients: (m,) share of gradients that were zero.
        """
        more = achieved > self.achieved[index]
        where = index[more]
        self.achieved[where] = achieved[more]
        self.predictions[where] = predictions[more]
        self.steps_to_success[where] = torch.where(achieved[more] >= 1, steps[more].int(), NEVER)
        if zero_gradients is not None:
            self.zero_gradients[where] = zero_gradients[more].float()

    def at_larger_eps(self) -> Outcome:
        """The start of the attack at a larger eps: samples with success are not attacked again."""
        return Outcome(
            achieved=self.achieved.clone(),
            predictions=self.predictions.clone(),
            steps_to_success=torch.full_like(self.steps_to_success, NEVER).masked_fill_(
                self.success & (self.steps_to_success >= 0), 0
            ),
            zero_gradients=self.zero_gradients.clone(),
            entered=~self.success,
            images=self.images.clone(),
        )

    def n_target_hits(self, attackable: Tensor) -> int:
        """The number of attacked samples with success; for a targeted attack, those predicted as their
        target."""
        return int((self.success & attackable).sum())

    def arrays(self) -> dict[str, Any]:
        """The fields as arrays by name, for a file."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: np.asarray(value) for name, value in values.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Outcome:
        """The inverse of :meth:`arrays`."""
        values: dict[str, Any] = {}
        for item in fields(cls):
            array = np.asarray(arrays[item.name])
            values[item.name] = torch.from_numpy(array.copy()) if array.ndim else array.item()
        return cls(**values)
