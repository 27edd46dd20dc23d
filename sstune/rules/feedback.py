"""Base class of a layer's feedback, and the helpers that rules share.

V itself is never stored: the backward pass computes it from a few operands (:class:`Pathway`), so a rule
needs no memory beyond its operands and, during the backward pass, one layer's V.
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
from sstune.rules.observation import Observed
from sstune.schema import Redraw, RuleConfig, Scale
from sstune.seeding import seed_from


class Pathway(NamedTuple):
    """How a backward pass computes V, and the gradients of trained feedback.

    ``V = form(W, *operands)``, of W's shape and dtype. ``operand_grads(dW, *operands)`` returns the gradients
    of the operands; None if no operand is trained.
    """

    form: Callable[..., Tensor]
    operands: tuple[Tensor | None, ...] = ()
    operand_grads: Callable[..., tuple[Tensor | None, ...]] | None = None


def identity(weight: Tensor) -> Tensor:
    """V = W."""
    return weight


def signed(weight: Tensor, scale: Tensor | None, magnitude: Tensor | None) -> Tensor:
    """V = s M sign(W), with sign(0) = 0; a factor of None counts as 1."""
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
    """The feedback of one layer: base class of all rules.

    A rule overrides :meth:`forward`, which returns the pathway of V. A direct rule instead sets ``is_direct``
    and overrides :meth:`connect` and :meth:`cut`. A rule whose configuration has a key ``redraw`` is random:
    it is frozen for evaluation and redrawn by attacks. It overrides :meth:`redraw` and, if :meth:`forward`
    draws, :meth:`current_pathway`.

    Args:
        module: the layer before its conversion.
        rule: the rule's configuration.
        seed: of the run.
        layer: the layer's name; draws are seeded by (seed, layer).
    """

    is_direct = False  # the error comes from the network's output, through `cut`, instead of through V
    each_step = False  # V changes only in begin_step, once per optimiser step

    def __init__(self, module: nn.Module, rule: RuleConfig, seed: int, layer: str) -> None:
        super().__init__()
        self.rule_name = rule.name
        self.is_random = hasattr(rule, "redraw")
        self.is_frozen = False  # then forward passes use current_pathway; see sstune.rules.frozen_feedback
        if getattr(rule, "redraw", None) is Redraw.step:
            self.each_step = True
        self.scale = rule.scale
        self.seed = seed
        self.layer = layer
        self.constant = constant_scale(weight_of(module).shape, rule.scale, n_outputs(module))
        self.begun_with: int | None = None  # version of the weight at the latest begin_step

    @classmethod
    def connect(cls, network: nn.Module, layers: dict[str, nn.Module], observed: Observed | None) -> None:
        """Called once after the conversion of ``network``, for rules that need it as a whole.

        Args:
            layers: the converted layers by name; each holds its ``feedback``.
            observed: shapes seen in a forward pass of the example batch, None if none was given.
        """

    def cut(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer's input ``x`` as a direct rule passes it to the layer's own forward."""
        return x

    def begin_step(self, weight: Tensor) -> None:
        """Called once before the forward pass of each optimiser step."""

    def redraw(self, key: int) -> None:
        """Redraw random feedback, seeded by (seed, layer, ``key``).

        Replaces tensors instead of changing them: a pending backward pass uses the old ones, and
        :func:`sstune.rules.frozen_feedback` restores them. Does not count as one of the rule's own draws.
        """

    def magnitude_now(self, weight: Tensor) -> Tensor | None:
        """M for the present forward pass; None for 1."""
        return None

    def scale_now(self, weight: Tensor) -> Tensor | None:
        """s, a 0-d tensor on the weight's device."""
        if self.scale is Scale.unit:
            return None
        if self.scale is Scale.weight_rms:
            return rms(weight)
        return torch.full((), self.constant, dtype=weight.dtype, device=weight.device)

    def forward(self, weight: Tensor) -> Pathway:
        """The pathway for a forward pass with the present ``weight``; called in every forward pass."""
        return Pathway(signed, (self.scale_now(weight), self.magnitude_now(weight)))

    def current_pathway(self, weight: Tensor) -> Pathway:
        """The pathway with the latest draw: as :meth:`forward`, but it never draws."""
        return self.forward(weight)

    @torch.no_grad()
    def matrix(self, weight: Tensor) -> Tensor:
        """The present V, of ``weight``'s shape, detached."""
        form, operands, _ = self.current_pathway(weight)
        return form(weight.detach(), *operands)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # The state dict of an unconverted network has no feedback: that of the conversion is kept.
        if any(key.startswith(prefix) for key in state_dict):
            super()._load_from_state_dict(state_dict, prefix, *args)


def warn_of_steps_not_begun(feedback: Feedback, weight: Tensor, rule: str) -> None:
    """Warn in training if ``weight`` is updated from step to step without calls of ``begin_step``.

    Checked when the gradient arrives, which happens in every training loop, compiled or not.
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
        return Pathway(identity)
