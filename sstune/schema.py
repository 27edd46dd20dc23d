"""What may be asked for: one dataclass per command and per group, with names, types and ranges.

The classes are registered with Hydra, so a mistyped key or a value of the wrong type fails while the
configuration is composed; what types cannot say is checked by :mod:`sstune.validation`. Imports neither torch
nor anything of sstune.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from omegaconf import MISSING


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


class Stem(StrEnum):
    """First layers of a ResNet: 3x3 stride 1 (cifar), or 7x7 stride 2 and max-pooling (imagenet)."""

    cifar = "cifar"
    imagenet = "imagenet"


class Precision(StrEnum):
    """Arithmetic of the training step; evaluation and attacks are always float32."""

    float32 = "float32"
    bf16 = "bf16"


class Gradient(StrEnum):
    """What a white-box attacker differentiates: the net with its feedback, or the true derivative."""

    rule = "rule"
    exact = "exact"


@dataclass
class BackboneConfig:
    """A network, without its normalisation; the head is sized for the dataset's classes."""

    name: str = MISSING


@dataclass
class ResNet18Config(BackboneConfig):
    stem: Stem = Stem.cifar
    pretrained: bool = False


@dataclass
class MlpConfig(BackboneConfig):
    """Fully connected with ReLU; ``hidden`` lists the widths between pixels and classes."""

    hidden: list[int] = field(default_factory=lambda: [512, 512])


@dataclass
class VitConfig(BackboneConfig):
    """``patch_size`` in pixels; must divide the image's height and width."""

    patch_size: int = 4


@dataclass
class DatasetConfig:
    """Where images come from; ``label`` is what tables call them, ``mean``/``std`` normalise [0,1] inputs."""

    name: str = MISSING
    label: str = MISSING
    mean: list[float] = MISSING
    std: list[float] = MISSING
    crop_padding: int = 0
    flip: bool = False
    val_fraction: float = 0.1


@dataclass
class DigitsConfig(DatasetConfig):
    test_fraction: float = 0.2


@dataclass
class Cifar10Config(DatasetConfig):
    root: str = "data"
    download: bool = True


@dataclass
class FolderConfig(DatasetConfig):
    """An ImageFolder tree ``<split>/<class>/<image>``: a directory, or a .tar / .tar.xz / .tar.gz of one."""

    root: str = MISSING
    train_split: str = "train"
    val_split: str | None = None
    test_split: str = "test"
    image_size: int | None = None
    cache: str = "~/.cache/sstune"


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
    """``weight_decay`` is multiplied by ``weight_decay_gamma`` at each of its milestones (epochs)."""

    name: str = MISSING
    lr: float = MISSING
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
        "resnet18": ResNet18Config,
        "mlp": MlpConfig,
        "vit_tiny": VitConfig,
    },
    "dataset": {
        "digits": DigitsConfig,
        "mnist": MnistConfig,
        "cifar10": Cifar10Config,
        "folder": FolderConfig,
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

    ``select`` says which epoch is kept; ``alignment`` whether each epoch ends by comparing feedback and
    updates with weights and true gradients.
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
    clip_norm: float | None = None
    select: Select = Select.best
    alignment: bool = True
    init_from: str | None = None
    seed: int = 0
    precision: Precision = Precision.float32
    device: str = "auto"
    threads: int | None = None
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
            store.store(group=f"schema/{group}", name=name, node=schema, provider="sstune.schema")


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a mistyped ``name``: the nearest known spelling, or the list of known ones."""
    known = sorted(known)
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {match[0]!r}?" if match else f"known: {', '.join(known)}"
