"""What every rule's feedback has in common: the answer to "where does V come from" for one layer.

V itself is never stored: the backward pass forms it from a few operands (:class:`Pathway`), so a rule costs
no memory beyond its operands and, for a moment, one layer's V.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.init import _calculate_fan_in_and_fan_out

from sstune.registry import Registry
from sstune.schema import RuleConfig, Scale
from sstune.seeding import seed_from


class Pathway(NamedTuple):
    """How a backward pass gets V, and what trained feedback learns from it.

    ``V = form(W, *operands)``, of W's shape and dtype. ``learn(dW, *operands)`` gives the gradients of the
    operands; None where nothing of them is trained.
    """

    form: Callable[..., Tensor]
    operands: tuple[Tensor | None, ...] = ()
    learn: Callable[..., tuple[Tensor | None, ...]] | None = None


def itself(weight: Tensor) -> Tensor:
    """V = W."""
    return weight


def signed(weight: Tensor, scale: Tensor | None, magnitude: Tensor | None) -> Tensor:
    """V = s M sign(W), with sign(0) = 0; a factor that is None is left out."""
    matrix = torch.sign(weight)
    matrix = matrix if magnitude is None else matrix.mul_(magnitude)
    return matrix if scale is None else matrix.mul_(scale)


def fixed(weight: Tensor, scale: Tensor | None, matrix: Tensor) -> Tensor:
    """V = s B, whatever W is."""
    matrix = matrix.to(weight.dtype)
    return matrix if scale is None else matrix * scale.to(weight.dtype)


def weight_of(layer: nn.Module) -> Tensor:
    """The weight of a Conv, ConvTranspose or Linear layer, detached."""
    assert isinstance(layer.weight, Tensor)
    return layer.weight.detach()


def n_outputs(layer: nn.Module) -> int:
    """Output channels or features of a Conv, ConvTranspose or Linear layer."""
    outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    assert isinstance(outputs, int)
    return outputs


def constant_scale(shape: torch.Size, scale: Scale, outputs: int) -> float:
    """The scale s where it does not depend on the weights' values.

    ``xavier``: sqrt(2/(fan_in+fan_out)), the std of Glorot's initialisation (BioTorch's choice).
    ``he_fan_out``: sqrt(2/(kh kw C_out)) for convolutions, 1/sqrt(fan_in) for linear layers, as in the
    code of Xiao et al. (arXiv 1811.03567); ``outputs`` is C_out. ``unit`` and ``weight_rms``: 1 (the latter
    multiplies by RMS(W)).
    """
    if scale is Scale.xavier:
        return math.sqrt(2 / sum(_calculate_fan_in_and_fan_out(torch.empty(shape, device="meta"))))
    if scale is Scale.he_fan_out:
        is_linear = len(shape) == 2
        return 1 / math.sqrt(shape[1]) if is_linear else math.sqrt(2 / (math.prod(shape[2:]) * outputs))
    return 1.0


def rms(weight: Tensor) -> Tensor:
    """Root mean square, a 0-d tensor."""
    return torch.linalg.vector_norm(weight.detach()) / math.sqrt(weight.numel())


@torch.no_grad()
def draw(into: Tensor, scale: Scale, positive: bool, *key: int | str) -> Tensor:
    """Fill ``into`` with random numbers of RMS 1, to be multiplied by s; the same for the same ``key``.

    Uniform; ``he_fan_out`` follows Xiao et al.'s code instead (normal for convolutions; for linear layers s
    is the half-width of the uniform). Under ``weight_rms`` the RMS is 1 exactly, so that RMS(V) = RMS(W).
    """
    generator = torch.Generator(into.device).manual_seed(seed_from(*key))
    if scale is Scale.he_fan_out and into.dim() > 2:
        into.normal_(generator=generator)
        into = into.abs_() if positive else into
    else:
        width = 1.0 if scale is Scale.he_fan_out else math.sqrt(3)
        into.uniform_(0.0 if positive else -width, width, generator=generator)
    if scale is Scale.weight_rms:
        into.mul_(math.sqrt(into.numel()) / torch.linalg.vector_norm(into))
    return into


class Feedback(nn.Module):
    """The feedback of one layer.

    Args:
        module: the layer, as it is at conversion.
        rule: the rule's settings, its scale among them.
        seed: of the run.
        layer: the layer's name; draws are keyed by (seed, layer).
    """

    direct = False  # whether the error comes from the output at once (dfa), not through a V
    each_step = False  # whether V changes at each optimiser step by begin_step alone

    def __init__(self, module: nn.Module, rule: RuleConfig, seed: int, layer: str) -> None:
        super().__init__()
        self.scale = rule.scale
        self.seed = seed
        self.layer = layer
        self.constant = constant_scale(weight_of(module).shape, rule.scale, n_outputs(module))
        self.begun_with: int | None = None  # version of the weight that the present step began with

    def begin_step(self, weight: Tensor) -> None:
        """Called once before each optimiser step's forward."""

    def redraw(self, key: int) -> None:
        """Make the draw that ``key`` names, if this feedback is drawn anew at all; leaves no other trace."""

    def magnitude_now(self, weight: Tensor) -> Tensor | None:
        """M for the forward pass that is running."""
        return None

    def scale_now(self, weight: Tensor) -> Tensor | None:
        """s, a 0-d tensor on the weight's device."""
        if self.scale is Scale.unit:
            return None
        if self.scale is Scale.weight_rms:
            return rms(weight)
        return torch.full((), self.constant, dtype=weight.dtype, device=weight.device)

    def forward(self, weight: Tensor) -> Pathway:
        """The pathway of a forward pass with ``weight`` as it is now."""
        return Pathway(signed, (self.scale_now(weight), self.magnitude_now(weight)))

    def last(self, weight: Tensor) -> Pathway:
        """The pathway of the latest forward pass; unlike a forward, it never draws."""
        return self.forward(weight)

    @torch.no_grad()
    def matrix(self, weight: Tensor) -> Tensor:
        """The V in use, of ``weight``'s shape, detached."""
        form, operands, _ = self.last(weight)
        return form(weight.detach(), *operands)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # A plain network's state dict knows no feedback: what was made at conversion then stays.
        if any(key.startswith(prefix) for key in state_dict):
            super()._load_from_state_dict(state_dict, prefix, *args)


def warn_of_steps_not_begun(feedback: Feedback, weight: Tensor, rule: str) -> None:
    """Have training warn if ``weight`` is updated from step to step and no step is begun.

    The gradient's arrival is where this shows: compiled or not, a training loop comes by there.
    """
    known = weakref.ref(feedback)

    def check(weight: Tensor) -> None:
        feedback = known()
        if feedback is None or not feedback.training or feedback.begun_with == weight._version:
            return
        if feedback.begun_with is not None:
            warnings.warn(
                f"{rule}: weights were updated, but V is still that of an earlier step; call "
                f"sstune.rules.begin_step(network) before the forward pass of each step",
                RuntimeWarning,
                stacklevel=2,
            )
        feedback.begun_with = weight._version

    weight.register_post_accumulate_grad_hook(check)


FEEDBACKS: Registry[type[Feedback]] = Registry("rule.name")


@FEEDBACKS.register("sham")
class Sham(Feedback):
    """V = W through the feedback path: a control that must equal bp to rounding."""

    def forward(self, weight: Tensor) -> Pathway:
        return Pathway(itself)
