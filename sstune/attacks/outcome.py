"""What an attack has done to each sample; complete, or as far as it came before it was stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

NEVER = -1


@dataclass
class Outcome:
    """Of n samples under one attack, gradient and eps.

    Args:
        right: (n,) bool, still classified right, whatever was tried.
        broken: (n,) bool, the attack has succeeded: the sample is wrong or, if targeted, the target reached.
        effort: (n,) gradient steps or queries after which a sample was broken; -1 where unknown or never.
        entered: (n,) bool, not broken when the present part of the attack began.
        part: how many parts are finished.
        done: how many of the samples that entered the present part it has been tried on.
        seconds: time spent.
        images: (k, C, H, W) uint8, adversarial images of k samples, those of :meth:`Victim.some`.
    """

    right: Tensor
    broken: Tensor
    effort: Tensor
    entered: Tensor
    images: Tensor
    part: int = 0
    done: int = 0
    seconds: float = 0.0

    @classmethod
    def begin(cls, clean: Tensor, images: Tensor | None = None) -> Outcome:
        """Before the attack: samples that are wrong without one are broken.

        Args:
            images: (k, C, H, W) uint8, those samples' own.
        """
        return cls(
            right=clean.clone(),
            broken=~clean,
            effort=torch.full((len(clean),), NEVER, dtype=torch.int32),
            entered=clean.clone(),
            images=torch.empty(0, dtype=torch.uint8) if images is None else images.clone(),
        )

    def at_larger_eps(self) -> Outcome:
        """Where the attack begins at a larger eps: what is broken stays so, at no further effort."""
        unbroken = ~self.broken
        return Outcome(
            right=self.right.clone(),
            broken=self.broken.clone(),
            effort=torch.full_like(self.effort, NEVER).masked_fill_(self.broken & (self.effort >= 0), 0),
            entered=unbroken,
            images=self.images.clone(),
        )

    def reached(self, clean: Tensor) -> int:
        """On how many samples that were right, ``clean``, the attack has succeeded: if targeted, how many are
        taken for their target."""
        return int((self.broken & clean).sum())

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
