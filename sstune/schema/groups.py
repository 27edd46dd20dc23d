"""Config groups: a dataclass for each kind of backbone, dataset, task, rule, attack, optimiser, schedule."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from sstune.schema.attacks import ATTACK_TRAITS
from sstune.schema.choices import Redraw, Scale, Spread, Start, Variant
from sstune.schema.datasets import (
    DigitsConfig,
    DownloadedFolderConfig,
    FolderConfig,
    MnistConfig,
    TorchvisionConfig,
)


@dataclass
class BackboneConfig:
    """A network, without its normalisation; the head is sized for the dataset's classes."""

    name: str = MISSING


@dataclass
class PretrainedConfig(BackboneConfig):
    """A network with published ImageNet weights, which ``pretrained`` takes with their own preprocessing.

    Images are resized inside the network to ``input_size`` pixels (null: to the size of the weights when
    pre-trained, otherwise not at all).
    """

    pretrained: bool = False
    input_size: int | None = None


@dataclass
class TimmConfig(PretrainedConfig):
    """``name`` is any of timm's models."""


@dataclass
class ConvNetConfig(PretrainedConfig):
    """``variant`` auto: imagenet if pre-trained or for images of 64 pixels and more, otherwise cifar."""

    variant: Variant = Variant.auto


@dataclass
class MlpConfig(BackboneConfig):
    """Fully connected with ReLU; ``hidden`` lists the widths between pixels and classes."""

    hidden: list[int] = field(default_factory=lambda: [512, 512])


@dataclass
class VitConfig(PretrainedConfig):
    """``patch_size`` in pixels must divide the image's height and width (null: chosen to suit them)."""

    patch_size: int | None = None


@dataclass
class TaskConfig:
    name: str = MISSING


@dataclass
class ClassificationConfig(TaskConfig):
    """``adversarial``: train on images that this attack has moved (null: on images as they are).

    ``pgdK`` makes K steps of ``adversarial_step_size`` from a random start, ``fgsm`` one of
    ``adversarial_eps`` from the image itself, both in the Linf ball of radius ``adversarial_eps``.
    """

    label_smoothing: float = 0.0
    adversarial: str | None = None
    adversarial_eps: str = "4/255"
    adversarial_step_size: str = "eps/4"


@dataclass
class RuleConfig:
    """Where the feedback V of each converted layer comes from (``bp`` and ``sham`` have no scale)."""

    name: str = MISSING
    scale: Scale = Scale.weight_rms
    include: list[str] = field(default_factory=lambda: ["*"])
    exclude: list[str] = field(default_factory=list)


@dataclass
class BrsfConfig(RuleConfig):
    redraw: Redraw = Redraw.step


@dataclass
class DfaConfig(RuleConfig):
    spread: Spread = Spread.unit


@dataclass
class TrainedConfig(RuleConfig):
    """Feedback that learns; ``scale`` is that of a random start."""

    start: Start = Start.weights


@dataclass
class WeightMirrorConfig(TrainedConfig):
    """Per optimiser step: V <- (1 - decay) V + rate * mean of y x^T over ``samples`` noise vectors."""

    rate: float = 0.01
    decay: float = 0.01
    samples: int = 128


@dataclass
class OrthogonalPfaConfig(TrainedConfig):
    """``closed_form``: R follows from W without being kept; exact under SGD."""

    closed_form: bool = True


@dataclass
class PfaConfig(OrthogonalPfaConfig):
    """``expansion`` e = mid/out; ``density``: the share of the entries of B and R that exist."""

    expansion: float = 10.0
    density: float = 1.0


@dataclass
class OptimizerConfig:
    """``weight_decay`` is multiplied by ``weight_decay_gamma`` at each of its milestones (epochs).

    ``lr_factors`` multiplies the learning rate of the layers that a pattern names (the last that does), and
    the layers that ``freeze`` names are not trained; patterns are as in ``rule.include``. ``fused`` is one
    pass over memory for an update, with other rounding (null: on CUDA).
    """

    name: str = MISSING
    lr: float = MISSING
    lr_factors: dict[str, float] = field(default_factory=dict)
    freeze: list[str] = field(default_factory=list)
    fused: bool | None = None
    weight_decay: float = 0.0
    weight_decay_milestones: list[int] = field(default_factory=list)
    weight_decay_gamma: float = 0.1


@dataclass
class SgdConfig(OptimizerConfig):
    momentum: float = 0.9
    nesterov: bool = True


@dataclass
class AdamWConfig(OptimizerConfig):
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])


@dataclass
class ScheduleConfig:
    """Learning-rate factor per optimiser step; ``warmup_epochs`` rise linearly from zero."""

    name: str = MISSING
    warmup_epochs: float = 0.0


@dataclass
class CosineConfig(ScheduleConfig):
    final_factor: float = 0.0


@dataclass
class MultistepConfig(ScheduleConfig):
    milestones: list[int] = MISSING
    gamma: float = 0.1


GROUPS: dict[str, dict[str, type]] = {
    "backbone": {
        "plain": BackboneConfig,
        "convnet": ConvNetConfig,
        "mlp": MlpConfig,
        "vit": VitConfig,
        "timm": TimmConfig,
    },
    "dataset": {
        "digits": DigitsConfig,
        "mnist": MnistConfig,
        "torchvision": TorchvisionConfig,
        "folder": FolderConfig,
        "downloaded_folder": DownloadedFolderConfig,
    },
    "task": {"classification": ClassificationConfig},
    "rule": {
        "plain": RuleConfig,
        "brsf": BrsfConfig,
        "dfa": DfaConfig,
        "kp": TrainedConfig,
        "wm": WeightMirrorConfig,
        "pfa": PfaConfig,
        "pfa_o": OrthogonalPfaConfig,
    },
    "attack": {name: traits.config for name, traits in ATTACK_TRAITS.items()},
    "optimizer": {"sgd": SgdConfig, "adamw": AdamWConfig},
    "schedule": {"constant": ScheduleConfig, "cosine": CosineConfig, "multistep": MultistepConfig},
}
