"""What may be asked for: one dataclass per command and per group, with names, types and ranges.

The classes are registered with Hydra, so a mistyped key or a value of the wrong type fails while the
configuration is composed. :func:`validate` then checks what types cannot say (ranges, and fields that
depend on one another) and reports every problem at once. Imports neither torch nor anything of sstune.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from pathlib import Path

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
    name: str = MISSING
    lr: float = MISSING
    weight_decay: float = 0.0


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
    "backbone": {"cifar_resnet": BackboneConfig, "resnet18": ResNet18Config},
    "dataset": {"digits": DigitsConfig, "cifar10": Cifar10Config, "folder": FolderConfig},
    "task": {"classification": ClassificationConfig},
    "rule": {"plain": RuleConfig, "brsf": BrsfConfig},
    "attack": {"fgsm": AttackConfig, "pgd": PgdConfig},
    "optimizer": {"sgd": SgdConfig, "adamw": AdamWConfig},
    "schedule": {"constant": ScheduleConfig, "cosine": CosineConfig, "multistep": MultistepConfig},
}


@dataclass
class RunConfig:
    """One run of one command; ``init_from`` is a run directory or a file (null: see the command)."""

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


def parse_eps(text: str) -> float:
    """``"8/255"`` -> 0.0313...; also plain decimals.

    Raises:
        ValueError: not a number between 0 and 1.
    """
    try:
        value = float(Fraction(str(text).replace(" ", "")))
    except (ValueError, ArithmeticError):  # not a number, n/0, or beyond any float
        raise ValueError(f"{text!r} is not a fraction such as 8/255 or a decimal such as 0.03") from None
    if not 0 <= value <= 1:
        raise ValueError(f"{text!r} lies outside [0, 1]")
    return value


def parse_step_size(text: str, eps: float) -> float:
    """``"eps/4"`` or ``"2*eps"`` relative to ``eps``, otherwise absolute as :func:`parse_eps`."""
    text = str(text).replace(" ", "")
    if "eps" not in text:
        return parse_eps(text)
    match = re.fullmatch(r"(?:(?P<factor>[\d.]+)\*)?eps(?:/(?P<divisor>[\d.]+))?", text)
    if match is None:
        raise ValueError(f"{text!r} is none of 2/255, eps/4, 2.5*eps/10")
    try:
        return eps * float(match["factor"] or 1) / float(match["divisor"] or 1)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{text!r} is none of 2/255, eps/4, 2.5*eps/10") from None


def problems(config: RunConfig) -> Iterator[str]:
    """Every way in which a composed configuration cannot be run, as ``key: what was expected``."""
    yield from _out_of_range(config)
    if config.init_from is not None and not Path(config.init_from).expanduser().exists():
        yield f"init_from: {config.init_from} does not exist (a run directory or a checkpoint file)"
    if config.command == "train" and config.init_from is not None:
        yield "init_from: train starts from random (or backbone.pretrained) weights; use finetune"
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.device):
        yield f"device: {config.device!r} is none of auto, cpu, cuda, cuda:0"
    if isinstance(config.dataset, FolderConfig) and not Path(config.dataset.root).expanduser().exists():
        yield f"dataset.root: {config.dataset.root} does not exist (a directory or a .tar[.xz|.gz])"
    if not re.fullmatch(r"[\w.+-]+", config.dataset.label):
        yield f"dataset.label: {config.dataset.label!r} must consist of letters, digits and . _ + -"
    if len(config.dataset.mean) != len(config.dataset.std):
        yield "dataset.std: needs as many values as dataset.mean"
    if not all(std > 0 for std in config.dataset.std):
        yield f"dataset.std: {config.dataset.std} must be > 0"
    if (
        isinstance(config.optimizer, SgdConfig)
        and config.optimizer.nesterov
        and config.optimizer.momentum == 0
    ):
        yield "optimizer.nesterov: needs optimizer.momentum > 0, or set optimizer.nesterov=false"
    if isinstance(config.optimizer, AdamWConfig):
        betas = config.optimizer.betas
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            yield f"optimizer.betas: {betas} must be two values >= 0 and < 1"
    if not config.attack.eps:
        yield "attack.eps: needs at least one value"
    for eps in config.attack.eps:
        try:
            parse_eps(eps)
        except ValueError as error:
            yield f"attack.eps: {error}"
    if isinstance(config.attack, PgdConfig):
        try:
            parse_step_size(config.attack.step_size, 1.0)
        except ValueError as error:
            yield f"attack.step_size: {error}"
    if not config.attack.gradient:
        yield "attack.gradient: needs rule, exact or both"


# key -> (smallest allowed, largest allowed, whether the smallest itself is excluded)
_RANGES: dict[str, tuple[float, float, bool]] = {
    "epochs": (1, 1e6, False),
    "batch_size": (1, 1e6, False),
    "threads": (1, 1024, False),
    "clip_norm": (0, float("inf"), True),
    "seed": (0, 2**32 - 1, False),
    "dataset.crop_padding": (0, 1024, False),
    "dataset.val_fraction": (0, 0.9, True),
    "dataset.test_fraction": (0, 0.9, True),
    "dataset.image_size": (1, 4096, False),
    "task.label_smoothing": (0, 0.999, False),
    "attack.n": (1, float("inf"), False),
    "attack.batch_size": (1, 1e6, False),
    "attack.steps": (1, 1e6, False),
    "attack.restarts": (1, 1e6, False),
    "optimizer.lr": (0, float("inf"), True),
    "optimizer.weight_decay": (0, float("inf"), False),
    "optimizer.momentum": (0, 0.99999, False),
    "schedule.warmup_epochs": (0, 1e6, False),
    "schedule.final_factor": (0, 1, False),
    "schedule.gamma": (0, 1, True),
}


def _out_of_range(config: RunConfig) -> Iterator[str]:
    for key, (low, high, open_below) in _RANGES.items():
        section, _, name = key.rpartition(".")
        owner = getattr(config, section) if section else config
        value = getattr(owner, name, None)
        if not isinstance(value, int | float):
            continue
        if value < low or value > high or (open_below and value == low) or value != value:
            bounds = f"{'>' if open_below else '>='} {low:g}"
            if high < 1e6 or value > high:
                bounds += f" and <= {high:.10g}"
            yield f"{key}: {value:.10g} is out of range, expected {bounds}"


def validate(config: RunConfig) -> None:
    """Check what types cannot express.

    Raises:
        RequestError: naming every offending key, one line each.
    """
    found = list(problems(config))
    if found:
        raise RequestError("\n".join(found))
