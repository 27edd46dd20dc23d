"""Config groups: a dataclass for each kind of backbone, dataset, task, rule, attack, optimiser, schedule."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from sstune.schema.choices import (
    AttackLoss,
    Draws,
    Gradient,
    Interpolation,
    Norm,
    Redraw,
    Scale,
    Spread,
    Start,
    Target,
    Variant,
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
class AttackConfig:
    """An attack on [0,1] images; ``eps`` as people write it ("8/255"), in ``norm`` (Linf or L2).

    ``gradient`` lists what is differentiated, ``surrogates`` the runs or checkpoints that stand in for the
    network where that is ``surrogate``. ``eot`` gradients are averaged for a step, of feedback that is drawn
    as ``redraw`` says (null: as ``rule.redraw`` does). ``targeted``: into which class (null: any wrong one).
    With ``cascade`` a sample that broke at a smaller eps is not attacked at a larger one: it counts as
    broken. ``eight_bit``: success is judged on images rounded to 8 bits. ``n`` limits the test samples, of
    which ``save_images`` are kept with their adversarial images. ``batch_size`` null: the largest that fits.
    """

    name: str = MISSING
    eps: list[str] = MISSING
    norm: Norm = Norm.Linf
    gradient: list[Gradient] = field(default_factory=lambda: [Gradient.rule, Gradient.exact])
    surrogates: list[str] = field(default_factory=list)
    eot: int = 1
    redraw: Draws | None = None
    targeted: Target | None = None
    cascade: bool = False
    eight_bit: bool = False
    n: int | None = None
    save_images: int = 0
    batch_size: int | None = None


@dataclass
class AscentConfig(AttackConfig):
    """An attack that goes up the gradient of ``loss``."""

    loss: AttackLoss = AttackLoss.ce


@dataclass
class IteratedConfig(AscentConfig):
    """``step_size`` relative to eps ("eps/4") or absolute; ``early_exit``: a broken sample is left alone
    (unless ``eight_bit``)."""

    steps: int = 10
    step_size: str = "eps/4"
    early_exit: bool = True


@dataclass
class PgdConfig(IteratedConfig):
    restarts: int = 1
    random_start: bool = True


@dataclass
class MiFgsmConfig(IteratedConfig):
    """``decay`` of the accumulated gradient."""

    decay: float = 1.0


@dataclass
class LibraryConfig(AttackConfig):
    """An attack of another library, which draws for a whole batch: its size has a part in the outcome."""

    batch_size: int | None = 250


@dataclass
class ApgdConfig(LibraryConfig):
    steps: int = 100
    restarts: int = 1


@dataclass
class SquareConfig(LibraryConfig):
    queries: int = 5000


@dataclass
class RaysConfig(AttackConfig):
    queries: int = 2000


@dataclass
class NoiseConfig(AttackConfig):
    """The best of so many ``attempts``."""

    attempts: int = 100


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
    "attack": {
        "fgsm": AscentConfig,
        "pgd": PgdConfig,
        "mifgsm": MiFgsmConfig,
        "apgd": ApgdConfig,
        "autoattack": LibraryConfig,
        "square": SquareConfig,
        "rays": RaysConfig,
        "noise": NoiseConfig,
        "audit": AttackConfig,
    },
    "optimizer": {"sgd": SgdConfig, "adamw": AdamWConfig},
    "schedule": {"constant": ScheduleConfig, "cosine": CosineConfig, "multistep": MultistepConfig},
}
