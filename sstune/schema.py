"""What may be asked for: one dataclass per command and per group, with names, types and ranges.

The classes are registered with Hydra, so a mistyped key or a value of the wrong type fails while the
configuration is composed; what types cannot say is checked by :mod:`sstune.validation`. Imports neither torch
nor anything of sstune.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from omegaconf import MISSING, OmegaConf


class RequestError(Exception):
    """The request was wrong: shown as one line per problem, exit status 2, nothing touched."""


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
    """A network as published for ImageNet, or as is customary for small images; see docs/scaling.md."""

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
    """What a white-box attacker differentiates: the net with its feedback, or the true derivative."""

    rule = "rule"
    exact = "exact"


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
class DatasetConfig:
    """Where images come from; ``label`` is what tables call them, ``mean``/``std`` normalise [0,1] inputs.

    Training images are cropped (out of a frame of ``crop_padding`` zeros, or to a random share of the area
    from ``crop_scale`` to 1, resized), mirrored, put through ``transforms`` (torchvision v2, by name, with
    arguments: ``{RandAugment: {num_ops: 2}}``) and have a square of ``cutout`` pixels blanked. ``train_n``
    of them are used, or ``shots`` of each class, as ``subset_seed`` draws them (null: all).
    """

    name: str = MISSING
    label: str = MISSING
    mean: list[float] = MISSING
    std: list[float] = MISSING
    crop_padding: int = 0
    crop_scale: float | None = None
    flip: bool = False
    transforms: dict[str, Any] = field(default_factory=dict)
    cutout: int = 0
    val_fraction: float = 0.1
    train_n: int | None = None
    shots: int | None = None
    subset_seed: int = 0


@dataclass
class DigitsConfig(DatasetConfig):
    test_fraction: float = 0.2


@dataclass
class TorchvisionConfig(DatasetConfig):
    """Small images by torchvision: its directory, and whether it may download what is not there."""

    root: str = "data"
    download: bool = True


@dataclass
class FolderConfig(DatasetConfig):
    """An ImageFolder tree ``<split>/<class>/<image>``: a directory, or a .tar / .tar.xz / .tar.gz of one.

    Images are decoded once and held in memory; with ``stream`` (a directory only) they are read anew by
    worker processes whenever they are needed. Either way the shorter side is resized to ``image_size`` /
    ``crop_pct`` and the centre is cropped. ``skip_corrupt`` leaves out images that cannot be decoded, and
    counts them.
    """

    root: str = MISSING
    train_split: str = "train"
    val_split: str | None = None
    test_split: str = "test"
    image_size: int | None = None
    crop_pct: float = 1.0
    interpolation: Interpolation = Interpolation.bilinear
    stream: bool = False
    skip_corrupt: bool = False
    cache: str = "~/.cache/sstune"


@dataclass
class DownloadedFolderConfig(FolderConfig):
    """An image tree that torchvision can download into ``root``."""

    download: bool = True


@dataclass
class MnistConfig(DatasetConfig):
    """``root``: torchvision's directory, or an archive or tree ``<split>/<class>/<image>`` of these images.

    ``padding``: black pixels added on each side (2 gives 32x32).
    """

    root: str = "data"
    download: bool = True
    padding: int = 0
    cache: str = "~/.cache/sstune"


@dataclass
class TaskConfig:
    name: str = MISSING


@dataclass
class ClassificationConfig(TaskConfig):
    label_smoothing: float = 0.0


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
class AttackConfig:
    """Linf attacks on [0,1] images; ``eps`` as people write it ("8/255"); ``n`` limits the test samples."""

    name: str = MISSING
    eps: list[str] = MISSING
    gradient: list[Gradient] = field(default_factory=lambda: [Gradient.rule, Gradient.exact])
    n: int | None = None
    batch_size: int = 128


@dataclass
class PgdConfig(AttackConfig):
    steps: int = 10
    step_size: str = "eps/4"
    restarts: int = 1
    random_start: bool = True


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
    "attack": {"fgsm": AttackConfig, "pgd": PgdConfig},
    "optimizer": {"sgd": SgdConfig, "adamw": AdamWConfig},
    "schedule": {"constant": ScheduleConfig, "cosine": CosineConfig, "multistep": MultistepConfig},
}


@dataclass
class RunConfig:
    """One run of one command; ``init_from`` is a run directory or a file (null: see the command).

    ``batch_size`` images make an optimiser step, ``accumulate`` parts one after the other. ``ema`` is the
    decay per step of the average of the weights that is evaluated and kept instead of them. ``select`` says
    which epoch is kept; ``patience`` stops after so many epochs without a better one. ``alignment``: whether
    each epoch ends by comparing feedback and updates with weights and true gradients. ``workers`` are
    processes that read images that do not stay in memory.
    """

    command: str = MISSING
    backbone: BackboneConfig = MISSING
    dataset: DatasetConfig = MISSING
    task: TaskConfig = MISSING
    rule: RuleConfig = MISSING
    attack: AttackConfig = MISSING
    optimizer: OptimizerConfig = MISSING
    schedule: ScheduleConfig = MISSING
    epochs: int = MISSING
    batch_size: int = MISSING
    accumulate: int = 1
    clip_norm: float | None = None
    ema: float | None = None
    select: Select = Select.best
    patience: int | None = None
    alignment: bool = True
    init_from: str | None = None
    seed: int = 0
    precision: Precision = Precision.float32
    compile: Compile | None = None
    deterministic: bool = False
    device: str = "auto"
    threads: int | None = None
    workers: int | None = None
    out: str = "runs"
    force: bool = False


@dataclass
class TrainConfig(RunConfig):
    command: str = "train"


@dataclass
class FinetuneConfig(RunConfig):
    command: str = "finetune"


@dataclass
class AttackRunConfig(RunConfig):
    command: str = "attack"


COMMANDS: dict[str, type[RunConfig]] = {
    "train": TrainConfig,
    "finetune": FinetuneConfig,
    "attack": AttackRunConfig,
}


def register() -> None:
    """Put every schema into Hydra's store, where ``conf/*.yaml`` name them first in their defaults."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    for command, schema in COMMANDS.items():
        store.store(group="schema", name=command, node=schema, provider="sstune.schema")
    for group, options in GROUPS.items():
        for name, schema in options.items():
            node = OmegaConf.structured(schema)
            for item in fields(schema):
                if str(item.type).startswith("dict["):  # optimizer.lr_factors={head:10} adds a key to it
                    OmegaConf.set_struct(node[item.name], False)
            store.store(group=f"schema/{group}", name=name, node=node, provider="sstune.schema")


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a mistyped ``name``: the nearest known spelling, or the list of known ones."""
    known = sorted(known)
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {match[0]!r}?" if match else f"known: {', '.join(known)}"
