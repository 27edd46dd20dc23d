"""Sign-symmetric feedback: V has the signs of W, but other magnitudes (Liao, Leibo, Poggio 2016)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sstune.rules.feedback import FEEDBACKS, Feedback, Pathway, draw, signed, weight_of
from sstune.schema import BrsfConfig, Redraw, RuleConfig


@FEEDBACKS.register("usf")
class UniformSign(Feedback):
    """Uniform sign-concordant feedback: V = s sign(W) (Liao, Leibo, Poggio 2016, arXiv 1510.05067)."""


@FEEDBACKS.register("frsf")
class FixedRandomSign(Feedback):
    """Fixed random magnitudes, live signs: V = s M sign(W), M >= 0 drawn at conversion (Liao et al. 2016)."""

    magnitude: Tensor

    def __init__(self, module: nn.Module, rule: RuleConfig, seed: int, layer: str) -> None:
        super().__init__(module, rule, seed, layer)
        self.draws = 0
        self.register_buffer("magnitude", torch.empty_like(weight_of(module)))
        self.redraw_into(self.magnitude)

    def redraw_into(self, magnitude: Tensor) -> None:
        """Fill ``magnitude`` with the next draw and make it M."""
        draw(magnitude, self.scale, True, self.seed, "feedback", self.layer, self.draws)
        self.magnitude = magnitude
        self.draws += 1

    def magnitude_now(self, weight: Tensor) -> Tensor:
        return self.magnitude

    def get_extra_state(self) -> dict[str, int]:
        """The number of draws so far, so that a resumed run continues with the next one."""
        return {"draws": self.draws}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.draws = state["draws"]


@FEEDBACKS.register("brsf")
class BatchwiseRandomSign(FixedRandomSign):
    """Batchwise random magnitudes: as frsf, with a new M for every mini-batch (Liao et al. 2016).

    ``redraw=step``: once per optimiser step; evaluation keeps the last draw.
    ``redraw=forward``: in every forward pass, evaluation and attack steps included, as BioTorch does.
    """

    def __init__(self, module: nn.Module, rule: BrsfConfig, seed: int, layer: str) -> None:
        super().__init__(module, rule, seed, layer)
        self.redraw_when = rule.redraw

    def begin_step(self, weight: Tensor) -> None:
        if self.redraw_when is Redraw.step:
            self.redraw_into(self.magnitude)

    def magnitude_now(self, weight: Tensor) -> Tensor:
        if self.redraw_when is Redraw.forward:
            self.redraw_into(torch.empty_like(self.magnitude))  # a pending backward pass uses the old one
        return self.magnitude

    def redraw(self, key: int) -> None:
        magnitude = torch.empty_like(self.magnitude)  # a pending backward pass uses the old one
        self.magnitude = draw(magnitude, self.scale, True, self.seed, "feedback", self.layer, "redraw", key)

    def current_pathway(self, weight: Tensor) -> Pathway:
        return Pathway(signed, (self.scale_now(weight), self.magnitude))
