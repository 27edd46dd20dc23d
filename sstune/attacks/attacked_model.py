"""The network that an attack calls: images in, outputs out; it redraws random feedback as configured."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sstune import rules
from sstune.schema import Draws
from sstune.seeding import seed_from


class AttackedModel(nn.Module):
    """Calls ``network``, counts its gradients, and redraws random feedback.

    A draw depends on ``key`` and on how many were made here before, not on the network's past. The class
    also hides the network's own class, ``mean`` and ``std``: from these torchattacks may conclude that the
    network expects normalised images (3.5 does for a class called RobModel), and normalise again.

    Args:
        network: images in [0,1] -> logits, in eval mode.
        draws: when random feedback is drawn.
        eot: gradients that are averaged for one step.
        key: of the draws, e.g. the seed and the number of the restart.
        forward: what computes the network's outputs, if not the network itself (a compiled one).
    """

    def __init__(
        self,
        network: nn.Module,
        draws: Draws = Draws.frozen,
        eot: int = 1,
        key: tuple[int | str, ...] = (),
        forward: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.training = network.training  # torchattacks restores this mode to the whole network
        self.draws = draws
        self.eot = eot
        self.key = key
        self.compute = network if forward is None else forward  # a compiled module has no truth value
        self.n_gradients = 0
        self.observe: Callable[[Tensor, Tensor], None] | None = None

    def forward(self, images: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self._draw()
        outputs: Tensor = self.compute(images)
        if torch.is_grad_enabled():
            outputs = outputs + 0 * images.sum()  # a gradient of zero where the network cuts it off
        if self.observe is not None:
            self.observe(images, outputs.detach())
        return outputs

    def _draw(self) -> None:
        """Before the forward pass of a gradient."""
        each = self.eot if self.draws is Draws.step else 1
        if self.draws is not Draws.frozen and self.n_gradients % each == 0:
            rules.redraw(self.network, seed_from("attack", *self.key, self.n_gradients // each))
        self.n_gradients += 1
