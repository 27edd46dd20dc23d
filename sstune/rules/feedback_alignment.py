"""Feedback that is fixed at conversion: fa and fa_signed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sstune.rules.feedback import FEEDBACKS, Feedback, Pathway, draw, fixed, weight_of
from sstune.schema import RuleConfig


@FEEDBACKS.register("fa")
class FeedbackAlignment(Feedback):
    """Feedback alignment: V = s B, random and independent of W (Lillicrap et al. 2016).

    B is drawn once; s follows ``rule.scale`` (``weight_rms``: RMS of the present W).
    """

    frozen: Tensor

    def __init__(self, module: nn.Module, rule: RuleConfig, seed: int, layer: str) -> None:
        super().__init__(module, rule, seed, layer)
        self.register_buffer("frozen", self.initial(weight_of(module)))

    def initial(self, weight: Tensor) -> Tensor:
        """B, of ``weight``'s shape."""
        return draw(torch.empty_like(weight), self.scale, False, self.seed, "feedback", self.layer, 0)

    def forward(self, weight: Tensor) -> Pathway:
        return Pathway(fixed, (self.scale_now(weight), self.frozen))


@FEEDBACKS.register("fa_signed")
class SignedFeedbackAlignment(FeedbackAlignment):
    """V = s sign(W at conversion), fixed: signs of the initial weights (as in the code of Xiao et al.).

    The signs are stored as one byte each.
    """

    def initial(self, weight: Tensor) -> Tensor:
        return torch.sign(weight).to(torch.int8)
