"""Outputs from which a loss has no useful gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.faults import Times10000
from scripts.gallery.entry import entry, itself
from scripts.gallery.steps import Rounded

FAMILY = "squashed outputs"


class Times(nn.Module):
    """Logits times ``factor``."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: Tensor) -> Tensor:
        return self.factor * logits


class FlatTanh(nn.Module):
    """100 tanh(log-probability): about 0 for the likeliest class, -100 for classes that are unlikely."""

    def forward(self, logits: Tensor) -> Tensor:
        return 100 * torch.tanh(logits.log_softmax(1))


class Label(nn.Module):
    """1 for the likeliest class, 0 for the others."""

    def forward(self, logits: Tensor) -> Tensor:
        return F.one_hot(logits.argmax(1), logits.shape[1]).to(logits)


@entry(FAMILY, "Carlini & Wagner 2017, arXiv 1608.04644; scripts/faults.py", twin=itself)
def times_10000(base: nn.Module) -> nn.Module:
    """Logits times 10,000: no cross-entropy is left in float32. The attacker uses the base network's logits,
    as for all of this family."""
    return nn.Sequential(base, Times10000())


@entry(FAMILY, "Carlini & Wagner 2017, arXiv 1608.04644", twin=itself)
def times_10(base: nn.Module) -> nn.Module:
    """Logits times 10: the cross-entropy of some samples is 0 in float32."""
    return nn.Sequential(base, Times(10))


@entry(FAMILY, "Papernot et al. 2016, arXiv 1511.04508; outputs own", twin=itself)
def probabilities(base: nn.Module) -> nn.Module:
    """Softmax of logits times 20, as after training at temperature 20: outputs are probabilities."""
    return nn.Sequential(base, Times(20), nn.Softmax(1))


@entry(FAMILY, "own", twin=itself)
def softmax(base: nn.Module) -> nn.Module:
    """Outputs are probabilities."""
    return nn.Sequential(base, nn.Softmax(1))


@entry(FAMILY, "own", twin=itself)
def flat_tanh(base: nn.Module) -> nn.Module:
    """Log-probabilities in the flat part of a tanh."""
    return nn.Sequential(base, FlatTanh())


@entry(FAMILY, "own", twin=itself)
def logits_to_tenths(base: nn.Module) -> nn.Module:
    """Logits rounded to multiples of 0.1."""
    return nn.Sequential(base, Rounded(0.1))


@entry(FAMILY, "own", twin=itself)
def logits_to_integers(base: nn.Module) -> nn.Module:
    """Logits rounded to integers; the first of equal classes is the answer."""
    return nn.Sequential(base, Rounded(1.0))


@entry(FAMILY, "own", twin=itself)
def label_only(base: nn.Module) -> nn.Module:
    """The answer without any score."""
    return nn.Sequential(base, Label())
