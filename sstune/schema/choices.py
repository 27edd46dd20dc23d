"""Enumerations: the values of keys with a fixed set of choices."""

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
    """Initial value of trained feedback: the weights (pfa: R = B^T W), or random."""

    weights = "weights"
    random = "random"


class Spread(StrEnum):
    """Target of dfa's projection: each unit of a layer's input, or each channel, equal at all positions."""

    unit = "unit"
    channel = "channel"


class Select(StrEnum):
    """Which epoch's weights a training run keeps: the best on validation, or the last."""

    best = "best"
    last = "last"


class Variant(StrEnum):
    """The network for ImageNet, or with the usual changes for small images; or its convolutions for ImageNet
    with a new head, without other fully connected layers. See docs/backbones.md."""

    auto = "auto"
    cifar = "cifar"
    imagenet = "imagenet"
    features = "features"


class Interpolation(StrEnum):
    """How an image is resized."""

    bilinear = "bilinear"
    bicubic = "bicubic"


class Queries(StrEnum):
    """Images that a retrieval benchmark's queries are drawn from: the dataset's test split, or all images."""

    test = "test"
    pooled = "pooled"


class Precision(StrEnum):
    """Arithmetic of the training step; evaluation and attacks are always float32."""

    float32 = "float32"
    tf32 = "tf32"
    bf16 = "bf16"


class Compile(StrEnum):
    """Modes of torch.compile; reduce_overhead uses CUDA graphs."""

    default = "default"
    reduce_overhead = "reduce-overhead"
    max_autotune = "max-autotune"


class Gradient(StrEnum):
    """Gradient of an attack: the rule's (with feedback), the exact one, a surrogate network's, or none."""

    rule = "rule"
    exact = "exact"
    surrogate = "surrogate"
    none = "none"


class Norm(StrEnum):
    """Norm of an adversarial perturbation."""

    Linf = "Linf"
    L2 = "L2"


class Target(StrEnum):
    """Target class: a random wrong class, the least likely one, or the one with the second largest logit."""

    random = "random"
    least_likely = "least_likely"
    runner_up = "runner_up"


class AttackLoss(StrEnum):
    """Loss that an attack increases: cross-entropy, or a difference of logits, which does not saturate; for
    hashing, the distance from the own code (logits, hag) or from the codes of relevant items."""

    ce = "ce"
    margin = "margin"
    logits = "logits"
    hag = "hag"
    sdha = "sdha"
    mainstay = "mainstay"


class HashLoss(StrEnum):
    """Training loss of hashing; see docs/hashing.md."""

    csq = "csq"
    dpsh = "dpsh"
    hashnet = "hashnet"
    dch = "dch"
    hyp2 = "hyp2"


class Draws(StrEnum):
    """Random feedback under attack: fixed, drawn for each step, or drawn for each gradient."""

    frozen = "frozen"
    step = "step"
    forward = "forward"
