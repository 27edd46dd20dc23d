"""What a key may be one of."""

from __future__ import annotations

from enum import StrEnum


class Scale(StrEnum):
    """Magnitude of a feedback matrix; see :mod:`sstune.rules.feedback`."""

    xavier = "xavier"
    he_fan_out = "he_fan_out"
    weight_rms = "weight_rms"
    unit = "unit"


class Redraw(StrEnum):
    """When brsf draws new magnitudes: once per optimiser step, or in every forward pass."""

    step = "step"
    forward = "forward"


class Start(StrEnum):
    """Where trained feedback starts: at the weights (pfa: R = B^T W), or at random."""

    weights = "weights"
    random = "random"


class Spread(StrEnum):
    """What dfa projects the error to: every unit of a layer's input, or every channel alike at all places."""

    unit = "unit"
    channel = "channel"


class Select(StrEnum):
    """Which epoch's weights a training run keeps: the best on validation, or the last."""

    best = "best"
    last = "last"


class Variant(StrEnum):
    """A network as published for ImageNet, or as is customary for small images; see docs/backbones.md."""

    auto = "auto"
    cifar = "cifar"
    imagenet = "imagenet"


class Interpolation(StrEnum):
    """How an image is resized."""

    bilinear = "bilinear"
    bicubic = "bicubic"


class Precision(StrEnum):
    """Arithmetic of the training step; evaluation and attacks are always float32."""

    float32 = "float32"
    tf32 = "tf32"
    bf16 = "bf16"


class Compile(StrEnum):
    """Modes of torch.compile, by their names there; reduce_overhead is CUDA graphs."""

    default = "default"
    reduce_overhead = "reduce-overhead"
    max_autotune = "max-autotune"


class Gradient(StrEnum):
    """What an attacker differentiates: the net with its feedback, or truly; another net; or nothing."""

    rule = "rule"
    exact = "exact"
    surrogate = "surrogate"
    none = "none"


class Norm(StrEnum):
    """How far an adversarial image is from the original."""

    Linf = "Linf"
    L2 = "L2"


class Target(StrEnum):
    """Which wrong class a targeted attack wants: any, or what the net thinks least or second most likely."""

    random = "random"
    least_likely = "least_likely"
    runner_up = "runner_up"


class AttackLoss(StrEnum):
    """What an attack increases: cross-entropy, or a difference of logits, which does not saturate."""

    ce = "ce"
    margin = "margin"


class Draws(StrEnum):
    """Random feedback under attack: as it is, drawn for each step, or for each gradient that is taken."""

    frozen = "frozen"
    step = "step"
    forward = "forward"
