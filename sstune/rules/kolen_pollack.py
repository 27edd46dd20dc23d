"""Kolen-Pollack feedback: V gets every update that W gets (Akrout et al. 2019, arXiv 1904.05391).

With dV = dW through the same optimiser with the same settings, only weight decay acts on V - W. So

    V_t = W_t + c_t (V_0 - W_0),

where c_t is the number 1 after t optimiser steps with gradient zero. It is a parameter of the optimiser whose
gradient is zero, so that every schedule of learning rate and weight decay applies to it, provided that it is
in the parameter group of its weight (recipes that exempt parameters without axes from weight decay must not
exempt this one). This is exact for SGD (linear in the gradient) and for AdamW
(equal gradients give equal steps), and V needs neither a gradient nor optimiser state of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sstune.rules.feedback import (
    FEEDBACKS,
    Feedback,
    Pathway,
    constant_scale,
    draw,
    identity,
    n_outputs,
    rms,
    weight_of,
)
from sstune.schema import Scale, Start, TrainedConfig


def weight_plus_offset(weight: Tensor, decay: Tensor, difference: Tensor) -> Tensor:
    """V = W + c D."""
    return weight + (decay * difference).to(weight.dtype)


def no_gradient(grad_weight: Tensor, decay: Tensor, *rest: Tensor) -> tuple[Tensor | None, ...]:
    """Zero for c, so that the optimiser applies weight decay alone to it."""
    return torch.zeros_like(decay), *(None for _ in rest)


class TrainedFeedback(Feedback):
    """Feedback that learns; ``rule.start`` says whether V starts at W or at random (of ``rule.scale``)."""

    def __init__(self, module: nn.Module, rule: TrainedConfig, seed: int, layer: str) -> None:
        super().__init__(module, rule, seed, layer)
        self.start = rule.start

    def random_start(self, weight: Tensor, shape: torch.Size, outputs: int) -> Tensor:
        """Random numbers of ``rule.scale`` for a layer of ``shape`` with ``outputs`` output channels."""
        drawn = draw(weight.new_empty(shape), self.scale, False, self.seed, "feedback", self.layer, 0)
        by_weight = self.scale is Scale.weight_rms
        return drawn * (rms(weight) if by_weight else constant_scale(shape, self.scale, outputs))


class OffsetFeedback(TrainedFeedback):
    """V = W + c D, with the offset D set by the subclass; None stands for D = 0."""

    decay: nn.Parameter
    difference: Tensor | None

    def set_offset(self, difference: Tensor | None) -> None:
        self.register_buffer("difference", difference)
        if difference is not None:
            # float64: a step takes less off it than float32 resolves near 1
            self.decay = nn.Parameter(torch.ones((), dtype=torch.float64, device=difference.device))

    def forward(self, weight: Tensor) -> Pathway:
        if self.difference is None:
            return Pathway(identity)
        return Pathway(weight_plus_offset, (self.decay, self.difference), no_gradient)


@FEEDBACKS.register("kp")
class KolenPollack(OffsetFeedback):
    """V trained by dV = dW and the same weight decay; started at W it stays there, and the rule is bp."""

    def __init__(self, module: nn.Module, rule: TrainedConfig, seed: int, layer: str) -> None:
        super().__init__(module, rule, seed, layer)
        weight = weight_of(module)
        if self.start is Start.weights:
            self.set_offset(None)
        else:
            self.set_offset(self.random_start(weight, weight.shape, n_outputs(module)) - weight)
