"""Kolen-Pollack feedback: V gets every update that W gets (Akrout et al. 2019, arXiv 1904.05391, eq. 16-17).

With dV = dW through the same optimiser with the same settings, only weight decay acts on V - W. So

    V_t = W_t + c_t (V_0 - W_0),

where c_t is what the optimiser makes of the number 1 when its gradient is zero. It is kept as a parameter
that rides in the optimiser with gradient zero, so every schedule of learning rate and weight decay applies by
itself. This is exact for SGD (linear in the gradient) and for AdamW (equal gradients give equal steps), and V
needs neither a gradient nor optimiser state of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sstune.rules.feedback import FEEDBACKS, Feedback, Pathway, constant_scale, draw, itself, rms, weight_of
from sstune.schema import Scale, Start, TrainedConfig


def following(weight: Tensor, decay: Tensor, difference: Tensor) -> Tensor:
    """V = W + c D."""
    return weight + (decay * difference).to(weight.dtype)


def no_gradient(grad_weight: Tensor, decay: Tensor, *rest: Tensor) -> tuple[Tensor | None, ...]:
    """Zero for c, so that the optimiser visits it and applies weight decay alone."""
    return torch.zeros_like(decay), *(None for _ in rest)


class TrainedFeedback(Feedback):
    """Feedback that learns; ``rule.start`` says whether V starts at W or at random (of ``rule.scale``)."""

    def __init__(self, module: nn.Module, rule: TrainedConfig, seed: int, layer: str) -> None:
        super().__init__(module, rule, seed, layer)
        self.start = rule.start

    def random_start(self, weight: Tensor, shape: torch.Size | None = None, outputs: int = 0) -> Tensor:
        """Random numbers of ``rule.scale``, of ``weight``'s shape or of that of a layer with ``outputs``."""
        into = torch.empty_like(weight) if shape is None else weight.new_empty(shape)
        constant = self.constant if shape is None else constant_scale(shape, self.scale, outputs)
        drawn = draw(into, self.scale, False, self.seed, "feedback", self.layer, 0)
        return drawn * (rms(weight) if self.scale is Scale.weight_rms else constant)

    def last(self, weight: Tensor) -> Pathway:
        return self.forward(weight)


class FollowingFeedback(TrainedFeedback):
    """V = W + c D, with D set by the subclass; D = 0 needs no state at all."""

    decay: nn.Parameter
    difference: Tensor | None

    def set_difference(self, difference: Tensor | None) -> None:
        self.register_buffer("difference", difference)
        if difference is not None:
            self.decay = nn.Parameter(torch.ones((), dtype=difference.dtype, device=difference.device))

    def forward(self, weight: Tensor) -> Pathway:
        if self.difference is None:
            return Pathway(itself)
        return Pathway(following, (self.decay, self.difference), no_gradient)


@FEEDBACKS.register("kp")
class KolenPollack(FollowingFeedback):
    """V trained by dV = dW and the same weight decay; started at W it stays there, and the rule is bp."""

    def __init__(self, module: nn.Module, rule: TrainedConfig, seed: int, layer: str) -> None:
        super().__init__(module, rule, seed, layer)
        weight = weight_of(module)
        at_random = self.start is Start.random
        self.set_difference(self.random_start(weight) - weight if at_random else None)
