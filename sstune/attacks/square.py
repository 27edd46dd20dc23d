"""Square: random search with squares of one colour, by scores alone.

Andriushchenko et al. 2020, arXiv 1912.00049. In Linf by torchattacks. In L2 by its authors (pyautoattack, an
extra): torchattacks' takes the length of a window over all channels together, and is weaker on colour images.
"""

from __future__ import annotations

import torch
import torchattacks
from torch import Tensor

from sstune.attacks.attack import ATTACKS, NEVER, AttackResult
from sstune.attacks.attacked_model import AttackedModel
from sstune.attacks.library import LibraryAttack, PlainAttack, on, reference
from sstune.datasets import Batch
from sstune.schema import Norm, RequestError, SquareConfig
from sstune.tasks import Objective
from sstune.tasks.classification import margin

LARGEST = 0.8  # share of the image's area that the search begins with


def check_size(attack: str, images: Tensor, norm: Norm) -> None:
    """Check that the first square is inside such images and, in L2, the tiles that the search begins with: as
    many as fit, of a fifth of the height, from half of what five of them leave.

    Raises:
        RequestError: it is not.
    """
    height, width = images.shape[2:]
    inside = round((LARGEST * height * width) ** 0.5) <= min(height, width)
    if norm is Norm.L2:
        tile = height // 5
        inside &= tile == 1 or (tile > 1 and (height - 5 * tile) // 2 + height // tile * tile <= height)
    if not inside:
        raise RequestError(f"attack: {attack} in {norm} is not for images of {height}x{width} pixels")


@ATTACKS.register("square")
class Square(LibraryAttack):
    """At AutoAttack's settings. It makes one query more than ``queries``: where it starts."""

    config: SquareConfig

    def __call__(
        self, stage: str, model: AttackedModel, batch: Batch, objective: Objective, eps: float
    ) -> AttackResult:
        check_size(self.name, batch.images, self.config.norm)
        queries = Queries(batch.targets, self.config.queries + 1)
        model.observe = queries
        attempt = super().__call__(stage, model, batch, objective, eps)
        return AttackResult(attempt.images, queries.steps_to_success)

    def made(self, model: AttackedModel, outputs: Tensor, eps: float) -> PlainAttack:
        settings = {
            "norm": self.config.norm.value,
            "eps": eps,
            "n_queries": self.config.queries,
            "n_restarts": 1,
            "p_init": LARGEST,
            "loss": "margin",
            "resc_schedule": False,
            "seed": self.seed,
        }
        if self.config.norm is Norm.Linf:
            return on(outputs.device, torchattacks.Square(model, **settings))
        return reference("square in L2").square.SquareAttack(model, **settings).perturb


class Queries:
    """Notes after how many queries each sample is broken; a query is of all samples not broken before it.

    The first two passes are of the images as they are, one by :class:`LibraryAttack` and one by the library,
    and the last, of what was found, is no query either.
    """

    def __init__(self, labels: Tensor, most: int) -> None:
        self.steps_to_success = torch.full_like(labels, NEVER)
        self.targets = labels
        self.most = most
        self.made = -2

    def __call__(self, images: Tensor, outputs: Tensor) -> None:
        self.made += 1
        if self.made <= 0:
            self.unbroken = (outputs.argmax(1) == self.targets).nonzero().flatten()
        elif self.made <= self.most and len(self.unbroken):
            # as the library judges, for which a tie of two classes is a success
            broken = margin(outputs, self.targets[self.unbroken]) >= 0
            before = self.steps_to_success[self.unbroken]
            self.steps_to_success[self.unbroken] = torch.where(broken, self.made, before)
            self.unbroken = self.unbroken[(~broken).nonzero().flatten()]
