"""Feedback that stays as it was at conversion: fa and fa_signed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sstune.rules.feedback import FEEDBACKS, Feedback, Pathway, draw, fixed, weight_of
from sstune.schema import RuleConfig


@FEEDBACKS.register("fa")
class FeedbackAlignment(Feedback):
    """Feedback alignment: V = s B, random and independent of W (Lillicrap et al. 2016).

    B is made once; s follows ``rule.scale`` (``weight_rms``: RMS of W as it is now).
    """

    frozen: Tensor

    def __init__(self, module: nn.Module, rule: RuleConfig, seed: int, layer: str) -> None:
        super().__init__(module, rule, seed, layer)
        self.register_buffer("frozen", self.make(weight_of(module)))

    def make(self, weight: Tensor) -> Tensor:
        """B, of ``weight``'s shape."""
        return draw(torch.empty_like(weight), self.scale, False, self.seed, "feedback", self.layer, 0)

    def forward(self, weight: Tensor) -> Pathway:
        return Pathway(fixed, (self.scale_now(weight), self.frozen))


@FEEDBACKS.register("fa_signed")
class SignedFeedbackAlignment(FeedbackAlignment):
    """V = s sign(W at conversion), frozen: signs that were right once (in the code of Xiao et al.).

    The signs are kept as one byte each.
    """

    def make(self, weight: Tensor) -> Tensor:
        return torch.sign(weight).to(torch.int8)
