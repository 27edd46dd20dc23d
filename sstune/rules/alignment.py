"""Alignment of each layer's feedback V with its weight W, and of the rule's update with the true gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sstune.modes import eval_mode
from sstune.rules.convert import exact_gradients, feedback_layers, unchanged_feedback


@dataclass(frozen=True)
class LayerAlignment:
    """Alignment of one layer; NaN where a value is undefined or was not requested.

    ``angle`` between W and V in degrees, share of entries with equal signs, and RMS(V)/RMS(W);
    ``update_cosine``: cosine of dW under the rule and the true dL/dW.
    """

    layer: str
    angle: float
    sign_agreement: float
    rms_ratio: float
    update_cosine: float


def alignment(model: nn.Module, loss: Callable[[], Tensor] | None = None) -> list[LayerAlignment]:
    """Alignment of every converted layer, with the V of its latest forward pass; empty for a plain network.

    Args:
        loss: returns the loss of ``model`` on a probe batch. It is called twice in eval mode, once for the
            gradients under the rule and once for the true ones; the feedback's state is restored afterwards,
            so that measuring does not change a training run. None: ``update_cosine`` is not measured.
    """
    layers = feedback_layers(model)
    cosines = _update_cosines(model, [layer.weight for layer in layers.values()], loss)
    measured = []
    for layer, cosine in zip(layers.values(), cosines, strict=True):
        weight = layer.weight.detach().double().flatten()
        feedback = layer.feedback.matrix(layer.weight).double().flatten()
        defined = bool(weight.any()) and bool(feedback.any()) and bool(feedback.isfinite().all())
        agreement = float((weight.sign() == feedback.sign()).double().mean())
        measured.append(
            LayerAlignment(
                layer=layer.feedback.layer,
                angle=math.degrees(math.acos(_cosine(weight, feedback))) if defined else math.nan,
                sign_agreement=math.nan if feedback.isnan().any() else agreement,
                rms_ratio=float(feedback.norm() / weight.norm()) if weight.any() else math.nan,
                update_cosine=cosine,
            )
        )
    return measured


def _update_cosines(
    model: nn.Module, weights: list[Tensor], loss: Callable[[], Tensor] | None
) -> list[float]:
    trained = [weight for weight in weights if weight.requires_grad]
    if loss is None or not trained:
        return [math.nan] * len(weights)
    with eval_mode(model), unchanged_feedback(model), torch.enable_grad():
        by_rule = torch.autograd.grad(loss(), trained, allow_unused=True)
        with exact_gradients(model):
            exact = torch.autograd.grad(loss(), trained, allow_unused=True)
    cosines = {
        id(weight): _cosine(one.double().flatten(), two.double().flatten())
        for weight, one, two in zip(trained, by_rule, exact, strict=True)
        if one is not None and two is not None
    }
    return [cosines.get(id(weight), math.nan) for weight in weights]


def _cosine(one: Tensor, two: Tensor) -> float:
    """NaN where either is zero."""
    norms = one.norm() * two.norm()
    return float((one @ two / norms).clamp(-1, 1)) if norms > 0 else math.nan
