"""How far each layer's feedback V is from its weight W, and the rule's update from the true gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sstune.rules.convert import exact_gradients, feedback_layers
from sstune.rules.observation import eval_mode


@dataclass(frozen=True)
class LayerAlignment:
    """One layer's comparison; NaN where a figure is not defined or was not asked for.

    ``angle`` between W and V in degrees, share of entries with equal signs, and RMS(V)/RMS(W);
    ``update_cosine``: cosine of dW under the rule and the true dL/dW.
    """

    layer: str
    angle: float
    sign_agreement: float
    rms_ratio: float
    update_cosine: float


def alignment(model: nn.Module, loss: Callable[[], Tensor] | None = None) -> list[LayerAlignment]:
    """Measure every converted layer, with the V of its latest forward pass; empty for a plain network.

    Args:
        loss: gives the loss of ``model`` on a probe batch, twice: once for the gradients under the rule and
            once for the true ones. Both in eval mode, and the feedback's own draws are taken back, so
            measuring changes nothing that a training run does. None leaves ``update_cosine`` out.
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
    with _as_found(model), torch.enable_grad():
        by_rule = torch.autograd.grad(loss(), trained, allow_unused=True)
        with exact_gradients(model):
            exact = torch.autograd.grad(loss(), trained, allow_unused=True)
    cosines = {
        id(weight): _cosine(one.double().flatten(), two.double().flatten())
        for weight, one, two in zip(trained, by_rule, exact, strict=True)
        if one is not None and two is not None
    }
    return [cosines.get(id(weight), math.nan) for weight in weights]


@contextmanager
def _as_found(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards each module's mode and every feedback's draws are as they were."""
    feedback = [layer.feedback for layer in feedback_layers(model).values()]
    states = [dict(each.__dict__, _buffers=dict(each._buffers)) for each in feedback]
    try:
        with eval_mode(model):
            yield
    finally:
        for each, state in zip(feedback, states, strict=True):
            each.__dict__.update(state)


def _cosine(one: Tensor, two: Tensor) -> float:
    """NaN where either is zero."""
    norms = one.norm() * two.norm()
    return float((one @ two / norms).clamp(-1, 1)) if norms > 0 else math.nan
