"""RayS (Chen & Gu 2020, arXiv 2006.12792): a black-box attack that uses predicted labels only.

Linf's strongest perturbations are corners of the ball, so the search is for the direction in {-1, 1}^d along
which the decision boundary is nearest. It flips the signs of ever smaller blocks of pixels, and keeps a flip
if the boundary then comes nearer; most flips are refused by one query at the nearest radius so far.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from sstune.attacks.attack import ATTACKS, Attack, AttackResult, OpenSamples
from sstune.attacks.attacked_model import AttackedModel
from sstune.datasets import Batch
from sstune.schema import RaysConfig
from sstune.tasks import Objective

WHOLE_RANGE = 1.0  # at this radius every pixel has reached 0 or 1
TOLERANCE = 1e-3  # of the radius in L2, as in the authors' code


@dataclass
class Search:
    """The state of the search for each of N images of d values.

    Args:
        radius: (N,) Linf distance to the nearest adversarial image so far; infinite before the first.
        direction: (N, d) of +1 and -1, towards it.
        trial: (N, d) the direction that is being tried: ``direction`` with the signs of a block flipped.
        block: (N,) where that block begins.
        size: (N,) of the block, the last being what is left of d.
        near: (N,) the largest radius known to be too small along ``trial``.
        searching: (N,) bool, between ``near`` and ``radius``; else ``trial`` has yet to prove itself.
    """

    radius: Tensor
    direction: Tensor
    trial: Tensor
    block: Tensor
    size: Tensor
    near: Tensor
    searching: Tensor

    @classmethod
    def begin(cls, images: Tensor) -> Self:
        """The initial state: direction all ones, and one block of all pixels."""
        flat = images.flatten(1)
        n, d = flat.shape
        return cls(
            radius=flat.new_full((n,), torch.inf),
            direction=torch.ones_like(flat),
            trial=-torch.ones_like(flat),
            block=flat.new_zeros(n, dtype=torch.long),
            size=flat.new_full((n,), d, dtype=torch.long),
            near=flat.new_zeros(n),
            searching=flat.new_zeros(n, dtype=torch.bool),
        )

    def take(self, index: Tensor) -> Self:
        """The samples at ``index``."""
        return type(self)(*(getattr(self, item.name)[index] for item in fields(self)))

    def ask(self) -> Tensor:
        """The radius, (N,), at which to query the network next, along ``trial``."""
        nearest = self.radius.clamp_max(WHOLE_RANGE)
        return torch.where(self.searching, (self.near + nearest) / 2, nearest)

    def tell(self, asked: Tensor, broken: Tensor) -> None:
        """Update the state: ``broken``, (N,) bool, are adversarial at the radius ``asked``, (N,)."""
        nearer = broken & (asked < self.radius)
        self.radius = torch.where(nearer, asked, self.radius)
        self.direction = torch.where(nearer[:, None], self.trial, self.direction)
        self.near = torch.where(broken, self.near, asked)
        tolerance = TOLERANCE / self.trial.shape[1] ** 0.5
        self.searching = (self.searching | broken) & (self.radius - self.near > tolerance)
        self._next_block(~self.searching)

    def _next_block(self, over: Tensor) -> None:
        """For the samples where ``over``, (N,) bool; after the last one the first again, of half the size."""
        d = self.trial.shape[1]
        block = self.block + self.size
        size = torch.where(block < d, self.size, (self.size + 1) // 2)
        block = torch.where(block < d, block, 0)
        self.block, self.size = torch.where(over, block, self.block), torch.where(over, size, self.size)
        self.near = torch.where(over, 0.0, self.near)
        pixel = torch.arange(d, device=block.device)
        inside = (pixel >= block[:, None]) & (pixel < (block + size)[:, None])
        flipped = torch.where(inside, -self.direction, self.direction)
        self.trial = torch.where(over[:, None], flipped, self.trial)


def along(images: Tensor, direction: Tensor, radius: Tensor) -> Tensor:
    """Images at ``radius``, (N,), along ``direction``, (N, d), clipped to [0,1]."""
    return (images + radius.view(-1, 1, 1, 1) * direction.reshape(images.shape)).clamp(0, 1)


@ATTACKS.register("rays")
class RayS(Attack):
    """RayS until an adversarial image is within eps or ``queries`` are used up; not random.

    Every sample still open has one image in each forward pass, so that the passes count each one's queries.
    A sample that withstands them keeps its own image: any other would be one query more.
    """

    config: RaysConfig

    @torch.no_grad()
    def __call__(
        self, stage: str, model: AttackedModel, batch: Batch, objective: Objective, eps: float
    ) -> AttackResult:
        result = batch.images.clone()
        open_, search = OpenSamples(batch, objective), Search.begin(batch.images)
        for query in range(1, self.config.queries + 1):
            radius = search.ask()
            images = along(open_.batch.images, search.trial, radius)
            broken = open_.objective.is_adversarial(model(images))
            search.tell(radius, broken)
            found = broken & (radius <= eps)
            open_.note(found, query)
            at = open_.index
            if (kept := open_.close(found)) is not None:
                chosen = found[:, None, None, None]
                result[at] = torch.where(chosen, images, result[at])
                search = search.take(kept)
            if len(open_) == 0:
                break
        return AttackResult(result, open_.steps_to_success)
