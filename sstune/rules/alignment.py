"""How far each layer's feedback V is from its weight W."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from sstune.rules.convert import feedback_layers


@dataclass(frozen=True)
class LayerAlignment:
    """Angle between W and V in degrees, share of entries with equal signs, and RMS(V)/RMS(W)."""

    layer: str
    angle: float
    sign_agreement: float
    rms_ratio: float


@torch.no_grad()
def alignment(model: nn.Module) -> list[LayerAlignment]:
    """Measure every converted layer, with the V of its latest forward pass; empty for a plain network."""
    measured = []
    for layer in feedback_layers(model).values():
        weight = layer.weight.detach().double().flatten()
        feedback = layer.feedback.matrix(layer.weight).double().flatten()
        norms = weight.norm() * feedback.norm()
        cosine = (weight @ feedback / norms).clamp(-1, 1) if norms > 0 else torch.tensor(math.nan)
        measured.append(
            LayerAlignment(
                layer=layer.feedback.layer,
                angle=math.degrees(math.acos(float(cosine))) if norms > 0 else math.nan,
                sign_agreement=float((weight.sign() == feedback.sign()).double().mean()),
                rms_ratio=float(feedback.norm() / weight.norm()) if weight.norm() > 0 else math.nan,
            )
        )
    return measured
