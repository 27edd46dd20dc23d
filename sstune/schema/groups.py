"""Config groups, and the dataclasses of backbones, tasks, rules, optimisers and schedules."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from sstune.schema.attacks import ATTACK_TRAITS
from sstune.schema.choices import HashLoss, Redraw, Scale, Spread, Start, Variant
from sstune.schema.datasets import (
    DigitsConfig,
    DownloadedFolderConfig,
    FolderConfig,
    ListConfig,
    MnistConfig,
    TorchvisionConfig,
)
from sstune.schema.keys import Identity, Range, Role, key


@dataclass
class BackboneConfig:
    """A network, without its normalisation; the head has one output for each class of the dataset."""

    name: str = key(
        MISSING, "Name of the network; follows from backbone=OPTION, except for timm, which requires it."
    )


@dataclass
class PretrainedConfig(BackboneConfig):
    """A network with published ImageNet weights."""

    pretrained: bool = key(False, "Load the published ImageNet weights, and use their preprocessing.")
    input_size: int | None = key(
        None,
        "Size in pixels to which images are resized inside the network; null: the size of the published "
        "weights if pretrained, otherwise no resizing.",
        within=Range(8, 4096),
    )
    crop_pct: float = key(
        1.0,
        "Resize images to input_size / crop_pct inside the network, and crop their centre of input_size.",
        within=Range(0, 1, above=True),
        identity=Identity.UNLESS_DEFAULT,
    )


@dataclass
class TimmConfig(PretrainedConfig):
    """Any model of timm, by its timm ``name``."""


@dataclass
class ConvNetConfig(PretrainedConfig):
    """A convolutional network that exists for ImageNet and for small images."""

    variant: Variant = key(
        Variant.auto,
        "The network as published for ImageNet, with the usual stem for small images (cifar), or the "
        "convolutions for ImageNet with a new head and no other fully connected layer (features: alexnet, "
        "vgg16); auto: imagenet if pretrained or for images of at least 64 pixels, otherwise cifar.",
    )


@dataclass
class MlpConfig(BackboneConfig):
    """A fully connected network with ReLU."""

    hidden: list[int] = key([512, 512], "Widths of the hidden layers.", within=Range(1, 2**20))


@dataclass
class VitConfig(PretrainedConfig):
    """A vision transformer."""

    patch_size: int | None = key(
        None,
        "Side of a patch in pixels, a divisor of the images' height and width; null: chosen by image size.",
        within=Range(1, 1024),
    )


@dataclass
class TaskConfig:
    """The task: loss, metric and outputs."""

    name: str = key(MISSING, "Name of the task; follows from task=OPTION.")


@dataclass
class ClassificationConfig(TaskConfig):
    """One class for each image; cross-entropy loss."""

    label_smoothing: float = key(
        0.0, "Label smoothing of the cross-entropy.", within=Range(0, 0.999), role=Role.TRAINING
    )


@dataclass
class HashingConfig(TaskConfig):
    """Image retrieval by binary codes (deep hashing)."""

    loss: HashLoss = key(HashLoss.csq, "Training loss: csq, dpsh, hashnet, dch or hyp2.")
    bits: int = key(32, "Length of the codes in bits.", within=Range(2, 2048))
    top_k: int | None = key(
        None, "Length K of the ranking that mAP@K averages over; null: the whole database.", within=Range(1)
    )
    refined: bool = key(
        False,
        "Also report mAP with ties broken by the real-valued outputs; slower.",
        identity=Identity.UNLESS_DEFAULT,
    )
    quantization: float | None = key(
        None,
        "Weight of the quantisation term; null: the loss's own (csq 1e-4, dpsh 0.1, dch 0.01).",
        within=Range(0),
        role=Role.TRAINING,
    )
    bank: bool = key(
        True,
        "dpsh compares a batch with the newest outputs of all training images; false: with itself, by tanh.",
        role=Role.TRAINING,
    )
    head_std: float = key(
        0.1, "Standard deviation of the head's first weights.", within=Range(0, 10), role=Role.TRAINING
    )
    head_lr_factor: float = key(
        10.0,
        "Factor on the learning rate of the head, unless optimizer.lr_factors names it.",
        within=Range(0, above=True),
        role=Role.TRAINING,
    )
    proxy_lr_factor: float = key(
        100.0,
        "Factor on the learning rate of the proxies of hyp2.",
        within=Range(0, above=True),
        role=Role.TRAINING,
    )
    val_database: int | None = key(
        5000,
        "Number of database images against which validation queries are ranked in each epoch; null: all.",
        within=Range(1),
        role=Role.TRAINING,
    )


@dataclass
class RuleConfig:
    """A learning rule: where the feedback V of each converted layer comes from."""

    name: str = key(MISSING, "Name of the rule; follows from rule=OPTION.")
    scale: Scale = key(
        Scale.weight_rms,
        "Magnitude of the feedback; no effect with start=weights, bp or sham.",
    )
    include: list[str] = key(["*"], "Patterns of the layers to convert.")
    exclude: list[str] = key([], "Patterns of layers that are not converted even if include matches them.")


@dataclass
class BrsfConfig(RuleConfig):
    """Feedback with the signs of the weights and random magnitudes, drawn anew for each batch."""

    redraw: Redraw = key(
        Redraw.step,
        "When new magnitudes are drawn: once per optimiser step, or in every forward pass, also in "
        "evaluation and attacks, as in BioTorch.",
    )


@dataclass
class DfaConfig(RuleConfig):
    """Direct feedback alignment."""

    spread: Spread = key(
        Spread.unit,
        "Target of the projection: each unit of a layer's input, or each channel, equal at all positions.",
    )


@dataclass
class TrainedConfig(RuleConfig):
    """Feedback that is trained along with the weights."""

    start: Start = key(
        Start.weights,
        "Initial feedback: the weights (pfa: R = B^T W), or random with the magnitude of scale.",
    )


@dataclass
class WeightMirrorConfig(TrainedConfig):
    """In each optimiser step: V <- (1 - decay) V + rate * mean of y x^T over noise vectors x."""

    rate: float = key(0.01, "Learning rate of the feedback.", within=Range(0, 1, above=True))
    decay: float = key(0.01, "Decay of the feedback in each step.", within=Range(0, 1, above=True))
    samples: int = key(128, "Number of noise vectors in each step.", within=Range(1, 1e6))


@dataclass
class OrthogonalPfaConfig(TrainedConfig):
    """Product feedback alignment with orthogonal B."""

    closed_form: bool = key(
        True,
        "Compute R from W instead of training it; exact under sgd. Must be false for other optimisers.",
    )


@dataclass
class PfaConfig(OrthogonalPfaConfig):
    """Product feedback alignment: V = B R."""

    expansion: float = key(
        10.0,
        "Size of the intermediate population relative to a layer's outputs.",
        within=Range(0, 1000, above=True),
    )
    density: float = key(
        1.0,
        "Share of non-zero entries of B and R; below 1, closed_form must be false.",
        within=Range(0, 1, above=True),
    )


@dataclass
class OptimizerConfig:
    """A torch optimiser."""

    name: str = key(MISSING, "Name of the optimiser; follows from optimizer=OPTION.")
    lr: float = key(MISSING, "Learning rate.", within=Range(0, above=True))
    lr_factors: dict[str, float] = key(
        {},
        "Pattern of layers (as in rule.include) -> factor on their learning rate, e.g. {head: 10}; the last "
        "matching pattern applies.",
        within=Range(0, above=True),
        identity=Identity.UNLESS_DEFAULT,
    )
    freeze: list[str] = key(
        [], "Patterns of the layers that are not trained.", identity=Identity.UNLESS_DEFAULT
    )
    fused: bool | None = key(
        None,
        "Use torch's fused implementation, which rounds differently; null: on CUDA.",
        identity=Identity.NEVER,
    )
    weight_decay: float = key(0.0, "Weight decay.", within=Range(0))
    weight_decay_milestones: list[int] = key(
        [],
        "Epochs after which weight_decay is multiplied by weight_decay_gamma.",
        within=Range(1, 1e6),
    )
    weight_decay_gamma: float = key(
        0.1, "Factor on weight_decay at each of weight_decay_milestones.", within=Range(0)
    )


@dataclass
class SgdConfig(OptimizerConfig):
    """torch.optim.SGD."""

    momentum: float = key(0.9, "Momentum.", within=Range(0, 0.99999))
    nesterov: bool = key(True, "Nesterov momentum; needs momentum > 0.")


@dataclass
class AdamWConfig(OptimizerConfig):
    """torch.optim.AdamW."""

    betas: list[float] = key(
        [0.9, 0.999],
        "Decay of the averages of the gradient and of its square.",
        within=Range(0, 0.999999999),
    )


@dataclass
class AdamConfig(AdamWConfig):
    """torch.optim.Adam: weight decay is a part of the gradient."""


@dataclass
class ScheduleConfig:
    """A factor on the learning rate, updated in each optimiser step."""

    name: str = key(MISSING, "Name of the schedule; follows from schedule=OPTION.")
    warmup_epochs: float = key(
        0.0, "Epochs in which the learning rate rises linearly from zero.", within=Range(0, 1e6)
    )


@dataclass
class CosineConfig(ScheduleConfig):
    """Half a cosine, from 1 down to final_factor."""

    final_factor: float = key(0.0, "Factor at the end.", within=Range(0, 1))


@dataclass
class MultistepConfig(ScheduleConfig):
    """Steps at given epochs."""

    milestones: list[int] = key(
        MISSING, "Epochs after which the learning rate is multiplied by gamma.", within=Range(1, 1e6)
    )
    gamma: float = key(0.1, "Factor on the learning rate at each milestone.", within=Range(0, 1, above=True))


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
        "list": ListConfig,
    },
    "task": {"classification": ClassificationConfig, "hashing": HashingConfig},
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
    "optimizer": {"sgd": SgdConfig, "adam": AdamConfig, "adamw": AdamWConfig},
    "schedule": {"constant": ScheduleConfig, "cosine": CosineConfig, "multistep": MultistepConfig},
}
