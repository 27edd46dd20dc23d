"""Validation of a composed configuration: ranges, paths, and keys that depend on one another.

:func:`validate` reports every problem at once. Imports no torch.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from sstune.catalogue import name_problem
from sstune.schema import (
    GROUPS,
    PROTOCOLS,
    AdamWConfig,
    BackboneConfig,
    Compile,
    DatasetConfig,
    DownloadedFolderConfig,
    FolderConfig,
    ListConfig,
    MlpConfig,
    MultistepConfig,
    OrthogonalPfaConfig,
    PfaConfig,
    Queries,
    Redraw,
    RequestError,
    RunConfig,
    Select,
    SgdConfig,
    SplitConfig,
    nearest,
)
from sstune.validation.attacks import adversary_problems, attack_problems, task_problems
from sstune.validation.leaves import leaves, unwritable
from sstune.validation.places import exists, place_problem
from sstune.validation.ranges import out_of_range

# Characters of a name that becomes part of a run's directory.
_LONGEST_NAME = 100
# Weights of an mlp; with gradient and momentum, each takes 12 bytes in float32.
_MOST_WEIGHTS = 1e9
_SPLITS = ("train", "val", "test")


def problems(config: RunConfig, final: bool = True) -> Iterator[str]:
    """Every problem of a composed configuration, as ``key: what was expected``; see :func:`validate`."""
    try:
        values = leaves(config)
    except ValueError as error:
        yield str(error)
        return
    yield from out_of_range(config, values)
    if unfit := list(unwritable(values)):
        yield from unfit
        return  # the checks below assume well-formed texts
    for group in GROUPS:
        if problem := name_problem(group, getattr(config, group)):
            yield problem
    yield from _places(config)
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", config.device):
        yield f"device: {config.device!r} is none of auto, cpu, cuda, cuda:0"
    yield from _dataset(config.dataset)
    yield from _retrieval(config)
    if config.command != "attack":
        yield from _product_feedback(config)
        yield from _training(config)
    yield from _network(config.backbone)
    yield from _optimization(config)
    yield from adversary_problems(config.adversary)
    yield from attack_problems(config)
    if final:
        yield from task_problems(config)


def _places(config: RunConfig) -> Iterator[str]:
    """Problems of the paths of weights and runs, and of ``model.factory``."""
    if config.init_from is not None and not exists(config.init_from):
        yield f"init_from: {config.init_from} does not exist (a run directory or a checkpoint file)"
    if config.command == "train" and config.init_from is not None:
        yield "init_from: train starts from random (or backbone.pretrained) weights; use finetune"
    factory = config.model.factory
    if factory is not None:
        if config.command != "attack":
            yield f"model.factory: is for sstune attack, {config.command} builds its own network"
        if not re.fullmatch(r"[\w.]+:\w+", factory):
            yield f"model.factory: {factory!r} is not of the form package.module:factory"
        if config.init_from is not None:
            yield "model.factory: has its own weights, remove init_from"
    if problem := place_problem(config.out):
        yield f"out: {problem}"


def _dataset(dataset: DatasetConfig) -> Iterator[str]:
    if (
        isinstance(dataset, FolderConfig)
        and not isinstance(dataset, DownloadedFolderConfig)
        and not exists(dataset.root)
    ):
        yield f"dataset.root: {dataset.root} does not exist (a directory or a .tar[.xz|.gz])"
    if isinstance(dataset, ListConfig) and not exists(dataset.root):
        yield f"dataset.root: {dataset.root} does not exist (a directory with {dataset.database_file})"
    if not re.fullmatch(rf"(?=.*\w)[\w.+-]{{1,{_LONGEST_NAME}}}", dataset.label):
        yield (
            f"dataset.label: {dataset.label!r} must consist of letters, digits and . _ + - "
            f"(at most {_LONGEST_NAME})"
        )
    if len(dataset.mean) != len(dataset.std):
        yield "dataset.std: needs as many values as dataset.mean"
    elif len(dataset.mean) not in (1, 3):
        yield f"dataset.mean: has {len(dataset.mean)} values, expected 1 (grey images) or 3 (colours)"
    if dataset.train_n is not None and dataset.shots is not None:
        yield "dataset.shots: cannot be combined with dataset.train_n"
    yield from _shared(dataset)


def _shared(dataset: DatasetConfig) -> Iterator[str]:
    """Folders or list files that two splits share although they must not share images."""
    if isinstance(dataset, FolderConfig):
        splits = {key: getattr(dataset, key) for key in ("train_split", "val_split", "test_split")}
        pairs = [*itertools.combinations(splits, 2)]
    elif isinstance(dataset, ListConfig):
        splits = {f"{key}_file": getattr(dataset, f"{key}_file") for key in ("database", *_SPLITS)}
        pairs = [
            ("database_file", "test_file"),
            *itertools.combinations([f"{key}_file" for key in _SPLITS], 2),
        ]
    else:
        return
    for key, other in pairs:
        if splits[other] is not None and splits[key] == splits[other]:
            yield f"dataset.{other}: {splits[other]} is dataset.{key} already; splits must not share images"


def _retrieval(config: RunConfig) -> Iterator[str]:
    """Problems of the retrieval protocol."""
    split, protocol = config.split, PROTOCOLS.get(config.split.protocol)
    if isinstance(config.dataset, ListConfig):
        for key in ("queries", "n_query", "n_train"):
            if getattr(split, key) != getattr(SplitConfig(), key):
                yield f"split.{key}: the files of dataset=list say which images these are; keep its default"
    if protocol is None:
        yield f"split.protocol: there is no {split.protocol!r}, {nearest(split.protocol, PROTOCOLS)}"
    elif split.queries is Queries.pooled and protocol.n_query is None and split.n_query is None:
        yield (
            f"split.queries: the queries of {split.protocol} are the whole test split; to draw them from all "
            "images, set split.n_query"
        )


def _network(backbone: BackboneConfig) -> Iterator[str]:
    if not re.fullmatch(rf"\w[\w.-]{{0,{_LONGEST_NAME}}}", backbone.name, re.ASCII):
        yield f"backbone.name: {backbone.name!r} is not a timm model, e.g. convnext_atto or resnet18.a1_in1k"
    if isinstance(backbone, MlpConfig):
        weights = sum(width * after for width, after in itertools.pairwise(backbone.hidden))
        if weights > _MOST_WEIGHTS:
            yield f"backbone.hidden: {weights:.2g} weights between these layers, at most {_MOST_WEIGHTS:g}"


def _optimization(config: RunConfig) -> Iterator[str]:
    """Optimiser and schedule."""
    optimizer, schedule = config.optimizer, config.schedule
    if isinstance(optimizer, SgdConfig) and optimizer.nesterov and optimizer.momentum == 0:
        yield "optimizer.nesterov: needs optimizer.momentum > 0, or set optimizer.nesterov=false"
    if isinstance(optimizer, AdamWConfig) and len(optimizer.betas) != 2:
        yield f"optimizer.betas: {optimizer.betas} must be two values >= 0 and < 1"
    epochs = {"optimizer.weight_decay_milestones": optimizer.weight_decay_milestones}
    if isinstance(schedule, MultistepConfig):
        epochs["schedule.milestones"] = schedule.milestones
    for key, milestones in epochs.items():
        if milestones != sorted(set(milestones)):
            yield f"{key}: {milestones} must be epochs in ascending order"


def _training(config: RunConfig) -> Iterator[str]:
    if config.accumulate > 1 and 2 * config.accumulate > config.batch_size >= 1:
        yield (
            f"batch_size: {config.batch_size} images cannot be divided into {config.accumulate} parts of at "
            f"least two (accumulate)"
        )
    if config.accumulate > 1 and config.compile in (Compile.reduce_overhead, Compile.max_autotune):
        yield (
            f"compile: {config.compile.name} uses CUDA graphs, which overwrite the gradients of "
            f"previous parts (accumulate={config.accumulate}); use compile=default"
        )
    if config.patience is not None and config.select is not Select.best:
        yield "patience: needs select=best"
    if config.compile is not None and getattr(config.rule, "redraw", None) is Redraw.forward:
        yield "compile: does not support drawing feedback in the forward pass; use rule.redraw=step"


def _product_feedback(config: RunConfig) -> Iterator[str]:
    rule = config.rule
    if not isinstance(rule, OrthogonalPfaConfig) or not rule.closed_form:
        return
    if not isinstance(config.optimizer, SgdConfig):
        yield f"rule.closed_form: is exact under sgd only; must be false with {config.optimizer.name}"
    if isinstance(rule, PfaConfig) and rule.density < 1:
        yield "rule.closed_form: must be false where rule.density is below 1"


def validate(config: RunConfig, final: bool = True) -> None:
    """Check a composed configuration.

    Args:
        final: whether the task is known; if not, it is still to be inherited from the run of ``init_from``.

    Raises:
        RequestError: one line for each problem, with its key.
    """
    found = dict.fromkeys(problems(config, final))
    if found:
        raise RequestError(*found)
