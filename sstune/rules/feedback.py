"""Where the feedback V of a layer comes from: one class per rule, all of the form ``V = s * M * sign(W)``.

The scale s and the magnitudes M are optional, and so is the sign. V itself is never stored: the backward
pass forms it from the factors (:func:`feedback_matrix`), so ``usf`` costs no memory beyond one layer's V.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.init import _calculate_fan_in_and_fan_out

from sstune.registry import Registry
from sstune.schema import BrsfConfig, Redraw, RuleConfig, Scale
from sstune.seeding import seed_from


class Factors(NamedTuple):
    """``V = scale * magnitude * sign(weight)``; what is None (or not signed) is left out of the product."""

    scale: Tensor | None
    magnitude: Tensor | None
    signed: bool


def feedback_matrix(weight: Tensor, factors: Factors) -> Tensor:
    """V, of ``weight``'s shape and dtype (sign(0) = 0)."""
    scale, magnitude, signed = factors
    if signed:
        matrix = torch.sign(weight)
        matrix = matrix if magnitude is None else matrix.mul_(magnitude)
        return matrix if scale is None else matrix.mul_(scale)
    assert magnitude is not None
    matrix = magnitude.to(weight.dtype)
    return matrix if scale is None else matrix * scale.to(weight.dtype)


def constant_scale(shape: torch.Size, scale: Scale) -> float:
    """The scale s where it does not depend on the weights' values.

    ``xavier``: sqrt(2/(fan_in+fan_out)), the std of Glorot's initialisation (BioTorch's choice).
    ``he_fan_out``: sqrt(2/(kh kw C_out)) for convolutions, 1/sqrt(fan_in) for linear layers, as in the
    code of Xiao et al. (arXiv 1811.03567). ``unit`` and ``weight_rms``: 1 (the latter multiplies by
    RMS(W) at every forward).
    """
    if scale is Scale.xavier:
        return math.sqrt(2 / sum(_calculate_fan_in_and_fan_out(torch.empty(shape, device="meta"))))
    if scale is Scale.he_fan_out:
        is_linear = len(shape) == 2
        return 1 / math.sqrt(shape[1]) if is_linear else math.sqrt(2 / (math.prod(shape[2:]) * shape[0]))
    return 1.0


class Feedback(nn.Module):
    """The feedback of one layer; subclasses say which factors it has.

    Args:
        weight: the layer's weight at conversion (its values matter to no rule of this module).
        rule: the rule's settings, its scale among them.
        seed: of the run.
        layer: the layer's name; draws are keyed by (seed, layer, count).
    """

    signed = True
    has_scale = True

    def __init__(self, weight: Tensor, rule: RuleConfig, seed: int, layer: str) -> None:
        super().__init__()
        self.scale = rule.scale
        self.seed = seed
        self.layer = layer
        self.constant = constant_scale(weight.shape, rule.scale)

    def begin_step(self) -> None:
        """Called once before each optimiser step's forward."""

    def magnitude_now(self, weight: Tensor) -> Tensor | None:
        """M for the forward pass that is running."""
        return None

    def magnitude_last(self, weight: Tensor) -> Tensor | None:
        """M of the latest forward pass; draws nothing."""
        return self.magnitude_now(weight)

    def scale_now(self, weight: Tensor) -> Tensor | None:
        """s, a 0-d tensor on the weight's device."""
        if not self.has_scale or self.scale is Scale.unit:
            return None
        if self.scale is Scale.weight_rms:
            weight = weight.detach()
            return torch.linalg.vector_norm(weight) / math.sqrt(weight.numel())
        return torch.full((), self.constant, dtype=weight.dtype, device=weight.device)

    def forward(self, weight: Tensor) -> Factors:
        """The factors of V for a forward pass with ``weight`` as it is now."""
        return Factors(self.scale_now(weight), self.magnitude_now(weight), self.signed)

    def matrix(self, weight: Tensor) -> Tensor:
        """The V in use, of ``weight``'s shape, detached."""
        weight = weight.detach()
        factors = Factors(self.scale_now(weight), self.magnitude_last(weight), self.signed)
        return feedback_matrix(weight, factors)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # A plain network's state dict knows no feedback: the feedback drawn at conversion then stays.
        if any(key.startswith(prefix) for key in state_dict):
            super()._load_from_state_dict(state_dict, prefix, *args)


FEEDBACKS: Registry[type[Feedback]] = Registry("rule.name")


@FEEDBACKS.register("sham")
class Sham(Feedback):
    """V = W through the feedback path: a control that must equal bp to rounding."""

    signed = False
    has_scale = False

    def magnitude_now(self, weight: Tensor) -> Tensor:
        return weight.detach()


@FEEDBACKS.register("usf")
class UniformSign(Feedback):
    """Uniform sign-concordant feedback: V = s sign(W) (Liao, Leibo, Poggio 2016, arXiv 1510.05067)."""


class DrawnFeedback(Feedback):
    """Feedback with random magnitudes M, drawn from a generator of its own.

    M is uniform with RMS 1 before s is applied; ``he_fan_out`` follows Xiao et al.'s code instead (normal
    for convolutions; for linear layers s is the half-width of the uniform). Under ``weight_rms`` each draw
    is rescaled to RMS 1 exactly, so that RMS(V) = RMS(W).
    """

    magnitude: Tensor

    def __init__(self, weight: Tensor, rule: RuleConfig, seed: int, layer: str) -> None:
        super().__init__(weight, rule, seed, layer)
        self.draws = 0
        self.register_buffer("magnitude", torch.empty_like(weight, requires_grad=False))
        self.draw(self.magnitude)

    @torch.no_grad()
    def draw(self, magnitude: Tensor) -> None:
        """Fill ``magnitude`` with the next draw and let it be M."""
        generator = torch.Generator(magnitude.device)
        generator.manual_seed(seed_from(self.seed, "feedback", self.layer, self.draws))
        if self.scale is Scale.he_fan_out and magnitude.dim() > 2:
            magnitude.normal_(generator=generator)
            magnitude = magnitude.abs_() if self.signed else magnitude
        else:
            width = 1.0 if self.scale is Scale.he_fan_out else math.sqrt(3)
            magnitude.uniform_(0.0 if self.signed else -width, width, generator=generator)
        if self.scale is Scale.weight_rms:
            magnitude.mul_(math.sqrt(magnitude.numel()) / torch.linalg.vector_norm(magnitude))
        self.magnitude = magnitude
        self.draws += 1

    def magnitude_now(self, weight: Tensor) -> Tensor:
        return self.magnitude

    def get_extra_state(self) -> dict[str, int]:
        """The number of draws made, so that a resumed run goes on with the next one."""
        return {"draws": self.draws}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.draws = state["draws"]


@FEEDBACKS.register("frsf")
class FixedRandomSign(DrawnFeedback):
    """Fixed random magnitudes, live signs: V = s M sign(W), M drawn at conversion (Liao et al. 2016)."""


@FEEDBACKS.register("brsf")
class BatchwiseRandomSign(DrawnFeedback):
    """Batchwise random magnitudes: as frsf with M drawn anew for every mini-batch (Liao et al. 2016).

    ``redraw=step``: once per optimiser step; evaluation keeps the last draw.
    ``redraw=forward``: in every forward pass, evaluation and attack steps included, as BioTorch does.
    """

    def __init__(self, weight: Tensor, rule: BrsfConfig, seed: int, layer: str) -> None:
        super().__init__(weight, rule, seed, layer)
        self.redraw = rule.redraw

    def begin_step(self) -> None:
        if self.redraw is Redraw.step:
            self.draw(self.magnitude)

    def magnitude_now(self, weight: Tensor) -> Tensor:
        if self.redraw is Redraw.forward:
            self.draw(torch.empty_like(self.magnitude))  # a pending backward still holds the old one
        return self.magnitude

    def magnitude_last(self, weight: Tensor) -> Tensor:
        return self.magnitude


@FEEDBACKS.register("fa")
class FeedbackAlignment(DrawnFeedback):
    """Feedback alignment: V = s B, fixed, random and independent of W (Lillicrap et al. 2016)."""

    signed = False
