"""What a composed configuration must also satisfy: ranges, and fields that depend on one another.

:func:`validate` reports every problem at once. Imports no torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from sstune.schema import (
    AdamWConfig,
    AscentConfig,
    AttackConfig,
    ClassificationConfig,
    DownloadedFolderConfig,
    FolderConfig,
    Gradient,
    IteratedConfig,
    LibraryConfig,
    MlpConfig,
    Norm,
    OrthogonalPfaConfig,
    PfaConfig,
    Redraw,
    RequestError,
    RunConfig,
    Select,
    SgdConfig,
    nearest,
)


def parse_eps(text: str, norm: Norm = Norm.Linf) -> float:
    """``"8/255"`` -> 0.0313...; also ``"0.5/255"`` and plain decimals.

    Raises:
        ValueError: not a number between 0 and 1, or under L2, not finite or below 0.
    """
    try:
        numerator, *denominators = str(text).replace(" ", "").split("/")
        value = float(Fraction(numerator) / math.prod(map(Fraction, denominators)))
    except (ValueError, ArithmeticError):  # not a number, n/0, or beyond any float
        raise ValueError(f"{text!r} is not a fraction such as 8/255 or a decimal such as 0.03") from None
    largest = 1.0 if norm is Norm.Linf else 1e6  # the distance of black and white; in L2 it grows with size
    if not 0 <= value <= largest:
        raise ValueError(f"{text!r} lies outside [0, {largest:g}]")
    return value


def parse_step_size(text: str, eps: float, norm: Norm = Norm.Linf) -> float:
    """``"eps/4"`` or ``"2*eps"`` relative to ``eps``, otherwise absolute as :func:`parse_eps`."""
    text = str(text).replace(" ", "")
    if "eps" not in text:
        return parse_eps(text, norm)
    match = re.fullmatch(r"(?:(?P<factor>[\d.]+)\*)?eps(?:/(?P<divisor>[\d.]+))?", text)
    if match is None:
        raise ValueError(f"{text!r} is none of 2/255, eps/4, 2.5*eps/10")
    try:
        return eps * float(match["factor"] or 1) / float(match["divisor"] or 1)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{text!r} is none of 2/255, eps/4, 2.5*eps/10") from None


def parse_adversary(text: str) -> int | None:
    """The K of ``"pgdK"``, None of ``"fgsm"``: what ``task.adversarial`` trains against.

    Raises:
        ValueError: anything else.
    """
    if text == "fgsm":
        return None
    match = re.fullmatch(r"pgd(?P<steps>[1-9]\d{0,3})", text)
    if match is None:
        raise ValueError(f"{text!r} is none of fgsm, pgd7, pgd10 (pgd and the number of steps)")
    return int(match["steps"])


def problems(config: RunConfig) -> Iterator[str]:
    """Every way in which a composed configuration cannot be run, as ``key: what was expected``."""
    yield from _out_of_range(config)
    if config.init_from is not None and not Path(config.init_from).expanduser().exists():
        yield f"init_from: {config.init_from} does not exist (a run directory or a checkpoint file)"
    if config.command == "train" and config.init_from is not None:
        yield "init_from: train starts from random (or backbone.pretrained) weights; use finetune"
    if config.command != "attack" and config.model["import"] is not None:
        yield f"model.import: is for sstune attack, {config.command} builds its own network"
    if config.init_from is not None and config.model["import"] is not None:
        yield "model.import: brings its own weights, so init_from cannot"
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.device):
        yield f"device: {config.device!r} is none of auto, cpu, cuda, cuda:0"
    if (
        isinstance(config.dataset, FolderConfig)
        and not isinstance(config.dataset, DownloadedFolderConfig)
        and not Path(config.dataset.root).expanduser().exists()
    ):
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
    if config.command != "attack":
        yield from _product_feedback(config)
        yield from _training(config)
    if config.dataset.train_n is not None and config.dataset.shots is not None:
        yield "dataset.shots: says how many images of each class are used, so dataset.train_n cannot"
    if isinstance(config.backbone, MlpConfig) and not all(width > 0 for width in config.backbone.hidden):
        yield f"backbone.hidden: {config.backbone.hidden} must be widths > 0"
    milestones = config.optimizer.weight_decay_milestones
    if milestones != sorted(set(milestones)) or any(epoch < 1 for epoch in milestones):
        yield f"optimizer.weight_decay_milestones: {milestones} must be epochs >= 1 in ascending order"
    if isinstance(config.optimizer, AdamWConfig):
        betas = config.optimizer.betas
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            yield f"optimizer.betas: {betas} must be two values >= 0 and < 1"
    if isinstance(config.task, ClassificationConfig):
        yield from _adversary(config.task)
    yield from _attack(config)


def _training(config: RunConfig) -> Iterator[str]:
    if config.accumulate > 1 and 2 * config.accumulate > config.batch_size >= 1:
        yield (
            f"batch_size: {config.batch_size} images cannot be divided in {config.accumulate} parts of two "
            f"or more (accumulate)"
        )
    if config.patience is not None and config.select is not Select.best:
        yield "patience: waits for a better epoch, so select must be best"
    if config.compile is not None and getattr(config.rule, "redraw", None) is Redraw.forward:
        yield "compile: cannot draw feedback in the forward pass; use rule.redraw=step"
    for pattern, factor in config.optimizer.lr_factors.items():
        if not 0 < factor < float("inf"):
            yield f"optimizer.lr_factors: {pattern} has {factor}, expected > 0 (or use optimizer.freeze)"


def _adversary(task: ClassificationConfig) -> Iterator[str]:
    try:
        if task.adversarial is not None:
            parse_adversary(task.adversarial)
    except ValueError as error:
        yield f"task.adversarial: {error}"
    try:
        parse_eps(task.adversarial_eps)
    except ValueError as error:
        yield f"task.adversarial_eps: {error}"
    try:
        parse_step_size(task.adversarial_step_size, 1.0)
    except ValueError as error:
        yield f"task.adversarial_step_size: {error}"


def _attack(config: RunConfig) -> Iterator[str]:
    attack = config.attack
    if not attack.eps:
        yield "attack.eps: needs at least one value"
    for eps in attack.eps:
        try:
            parse_eps(eps, attack.norm)
        except ValueError as error:
            yield f"attack.eps: {error}"
    for key in ("eps", "gradient", "surrogates"):
        values = getattr(attack, key)
        if twice := sorted({str(value) for value in values if values.count(value) > 1}):
            yield f"attack.{key}: {twice[0]} is named twice"
    if isinstance(attack, IteratedConfig):
        try:
            parse_step_size(attack.step_size, 1.0, attack.norm)
        except ValueError as error:
            yield f"attack.step_size: {error}"
    if attack.name in GRADIENT_FREE:
        if attack.gradient != [Gradient.none]:
            yield f"attack.gradient: {attack.name} uses none, leave it away"
    elif not attack.gradient or Gradient.none in attack.gradient:
        yield "attack.gradient: needs rule, exact or both, or surrogate"
    if attack.norm not in NORMS.get(attack.name, tuple(Norm)):
        yield f"attack.norm: {attack.name} works in Linf only"
    climbs = isinstance(attack, AscentConfig)
    if Gradient.surrogate in attack.gradient and not climbs:
        yield f"attack.gradient: surrogate is for fgsm, pgd, mifgsm and transfer, not for {attack.name}"
    if (Gradient.surrogate in attack.gradient) != bool(attack.surrogates):
        yield "attack.surrogates: goes with attack.gradient=[surrogate]; name runs or checkpoints"
    named = [("attack.surrogates", path) for path in attack.surrogates]
    named += [("audit.surrogate", config.audit.surrogate)] if config.audit.surrogate else []
    for key, path in named:
        if not Path(path).expanduser().exists():
            yield f"{key}: {path} does not exist (a run directory or a checkpoint file)"
    if attack.targeted is not None and not climbs:
        yield f"attack.targeted: is for fgsm, pgd, mifgsm and transfer, not for {attack.name}"
    if attack.eot > 1 and not (climbs or attack.name.startswith(("apgd", "audit"))):
        yield f"attack.eot: is for fgsm, pgd, mifgsm, apgd, apgd_t and audit, not for {attack.name}"
    if attack.name == "audit":
        usual = AttackConfig()
        for key in ("gradient", "cascade", "eight_bit"):
            if getattr(attack, key) != getattr(usual, key):
                yield f"attack.{key}: the audit chooses its attacks itself, leave it away"
    if isinstance(attack, LibraryConfig) and attack.batch_size is None:
        yield f"attack.batch_size: {attack.name} draws for whole batches, so their size must be said"
    for check in config.audit.skip:
        if check not in CHECKS:
            yield f"audit.skip: unknown check {check!r}, {nearest(check, CHECKS)}"


def _product_feedback(config: RunConfig) -> Iterator[str]:
    rule = config.rule
    if not isinstance(rule, OrthogonalPfaConfig) or not rule.closed_form:
        return
    if not isinstance(config.optimizer, SgdConfig):
        yield f"rule.closed_form: holds under sgd only, with {config.optimizer.name} it must be false"
    if isinstance(rule, PfaConfig) and rule.density < 1:
        yield "rule.closed_form: must be false where rule.density is below 1"


# Attacks that ask for outputs only.
GRADIENT_FREE = ("square", "rays", "noise")
# Where not every norm will do.
NORMS = {"rays": (Norm.Linf,), "noise": (Norm.Linf,), "audit": (Norm.Linf,)}
# Of the audit, D0 to D15.
CHECKS = tuple(f"D{number}" for number in range(16))

# key -> (smallest allowed, largest allowed, whether the smallest itself is excluded)
_RANGES: dict[str, tuple[float, float, bool]] = {
    "epochs": (1, 1e6, False),
    "batch_size": (1, 1e6, False),
    "threads": (1, 1024, False),
    "clip_norm": (0, float("inf"), True),
    "workers": (0, 1024, False),
    "accumulate": (1, 1e6, False),
    "ema": (0, 0.999999, True),
    "patience": (1, 1e6, False),
    "seed": (0, 2**32 - 1, False),
    "dataset.crop_padding": (0, 1024, False),
    "dataset.val_fraction": (0, 0.9, True),
    "dataset.test_fraction": (0, 0.9, True),
    "dataset.image_size": (1, 4096, False),
    "dataset.crop_scale": (0, 1, True),
    "dataset.crop_pct": (0, 1, True),
    "dataset.cutout": (0, 4096, False),
    "dataset.train_n": (2, float("inf"), False),
    "dataset.shots": (1, float("inf"), False),
    "dataset.subset_seed": (0, 2**32 - 1, False),
    "task.label_smoothing": (0, 0.999, False),
    "attack.n": (1, float("inf"), False),
    "attack.batch_size": (1, 1e6, False),
    "attack.steps": (1, 1e6, False),
    "attack.restarts": (1, 1e6, False),
    "attack.decay": (0, 1e3, False),
    "attack.eot": (1, 1e6, False),
    "attack.queries": (1, 1e9, False),
    "attack.attempts": (1, 1e6, False),
    "attack.save_images": (0, 1e6, False),
    "audit.black_box_n": (1, float("inf"), False),
    "audit.square_queries": (1, 1e9, False),
    "audit.label_n": (1, float("inf"), False),
    "audit.label_queries": (1, 1e9, False),
    "optimizer.lr": (0, float("inf"), True),
    "optimizer.weight_decay": (0, float("inf"), False),
    "optimizer.momentum": (0, 0.99999, False),
    "optimizer.weight_decay_gamma": (0, float("inf"), False),
    "rule.rate": (0, 1, True),
    "rule.decay": (0, 1, True),
    "rule.samples": (1, 1e6, False),
    "rule.expansion": (0, 1000, True),
    "rule.density": (0, 1, True),
    "backbone.patch_size": (1, 1024, False),
    "backbone.input_size": (8, 4096, False),
    "dataset.padding": (0, 1024, False),
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
