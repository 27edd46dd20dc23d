"""What a composed configuration must also satisfy: ranges, and fields that depend on one another.

:func:`validate` reports every problem at once. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from sstune.schema import (
    AdamWConfig,
    ClassificationConfig,
    Compile,
    DownloadedFolderConfig,
    FolderConfig,
    MlpConfig,
    OrthogonalPfaConfig,
    PfaConfig,
    Redraw,
    RequestError,
    RunConfig,
    Select,
    SgdConfig,
)
from sstune.validation.attacks import adversary_problems, attack_problems
from sstune.validation.ranges import out_of_range


def problems(config: RunConfig) -> Iterator[str]:
    """Every way in which a composed configuration cannot be run, as ``key: what was expected``."""
    yield from out_of_range(config)
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
        yield from adversary_problems(config.task)
    yield from attack_problems(config)


def _training(config: RunConfig) -> Iterator[str]:
    if config.accumulate > 1 and 2 * config.accumulate > config.batch_size >= 1:
        yield (
            f"batch_size: {config.batch_size} images cannot be divided in {config.accumulate} parts of two "
            f"or more (accumulate)"
        )
    if config.accumulate > 1 and config.compile in (Compile.reduce_overhead, Compile.max_autotune):
        yield (
            f"compile: {config.compile.name} records CUDA graphs, in which the gradients of a part are "
            f"written over the last one's (accumulate={config.accumulate}); use compile=default"
        )
    if config.patience is not None and config.select is not Select.best:
        yield "patience: waits for a better epoch, so select must be best"
    if config.compile is not None and getattr(config.rule, "redraw", None) is Redraw.forward:
        yield "compile: cannot draw feedback in the forward pass; use rule.redraw=step"
    for pattern, factor in config.optimizer.lr_factors.items():
        if not 0 < factor < float("inf"):
            yield f"optimizer.lr_factors: {pattern} has {factor}, expected > 0 (or use optimizer.freeze)"


def _product_feedback(config: RunConfig) -> Iterator[str]:
    rule = config.rule
    if not isinstance(rule, OrthogonalPfaConfig) or not rule.closed_form:
        return
    if not isinstance(config.optimizer, SgdConfig):
        yield f"rule.closed_form: holds under sgd only, with {config.optimizer.name} it must be false"
    if isinstance(rule, PfaConfig) and rule.density < 1:
        yield "rule.closed_form: must be false where rule.density is below 1"


def validate(config: RunConfig) -> None:
    """Check what types cannot express.

    Raises:
        RequestError: naming every offending key, one line each.
    """
    found = list(problems(config))
    if found:
        raise RequestError("\n".join(found))
