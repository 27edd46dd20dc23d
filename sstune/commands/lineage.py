"""Resolve the run of a command: the weights it starts from, the settings it inherits, its identity.

Imports no torch, except for a network that ``model.factory`` names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import yaml

from sstune.composition import Request, compose, restore
from sstune.datasets import earlier_fingerprint, fingerprint
from sstune.identity import TRAINING_KEYS, semantic
from sstune.inheritance import INHERITED, SHARED_WITH_DEFAULT_PARENT
from sstune.row import Ancestor, AncestorConfigEntry, DatasetsEntry, Row
from sstune.runs import CONFIG, REPAIR_HINT, Run, ancestor_id, read_result
from sstune.schema import (
    BackboneConfig,
    DatasetConfig,
    DigitsConfig,
    FinetuneConfig,
    MnistConfig,
    RequestError,
    RuleConfig,
    RunConfig,
)
from sstune.storage import check_zip, file_digest, in_short
from sstune.validation import validate
from sstune.validation.places import names_factory

if TYPE_CHECKING:
    from torch import nn

MODEL = "model.pt"


@dataclass(frozen=True)
class Source:
    """Where the initial weights come from; :class:`sstune.commands.weights.Weights` reads them.

    Attributes:
        path: the file of the weights; for a network of ``model.factory``, its ``module:factory``.
        lineage: all ancestors, oldest first.
        config: configuration of the run that wrote the weights; None for a third-party file.
        network: the network of ``model.factory``; None if the weights are in a file.
        datasets: number and digest of the images of each split that the run used.
    """

    path: Path
    lineage: list[Ancestor]
    config: RunConfig | None
    network: nn.Module | None = None
    datasets: DatasetsEntry = field(default_factory=DatasetsEntry)


def open_source(path: Path) -> Source:
    """The weights in the directory of a finished run, or in a checkpoint file.

    Raises:
        RequestError: the directory is not a finished run, or a file in it is damaged.
    """
    path = path.expanduser()
    if not path.is_dir():
        try:
            return Source(path, [{"file": path.name, "sha256": file_digest(path)}], None)
        except OSError as error:
            raise RequestError(f"init_from: cannot read {path}: {error.strerror or error}") from error
    row = read_result(path)
    if row is None or not (path / MODEL).exists():
        raise RequestError(f"init_from: {path} is not a finished train or finetune run")
    _check_weights(path / MODEL, row.get("model_sha256"))
    ancestor: Ancestor = {
        "command": row["command"],
        "identity": row["identity"],
        "config": cast(AncestorConfigEntry, row["config"]),
    }
    config = _configuration(path, row)
    return Source(path / MODEL, [*row["lineage"], ancestor], config, datasets=row.get("datasets", {}))


def _check_weights(path: Path, digest: str | None) -> None:
    """Compare a run's weights with the digest in its row, which rows of earlier versions lack.

    Raises:
        RequestError: the file has been changed or damaged.
    """
    try:
        if digest is None:
            check_zip(path)
        elif file_digest(path) != digest:
            raise ValueError("not the sha256 in result.json")
    except Exception as error:
        raise RequestError(f"init_from: {path} is damaged ({in_short(error)}); {REPAIR_HINT}") from error


def _configuration(directory: Path, row: Row) -> RunConfig:
    """The configuration of a run, from its ``config.yaml``.

    Raises:
        RequestError: it cannot be read, or differs from the configuration in the row.
    """
    path = directory / CONFIG
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        config = restore(values)
    except Exception as error:  # a damaged file may raise anything
        raise RequestError(f"init_from: {path} cannot be read ({in_short(error)}); {REPAIR_HINT}") from error
    own = json.loads(json.dumps(semantic(config)))
    for section, value in row["config"].items():
        pairs = value.items() if isinstance(value, dict) else [(None, value)]
        for key, expected in pairs:
            found = own.get(section, expected) if key is None else own.get(section, {}).get(key, expected)
            if found != expected:
                name = section if key is None else f"{section}.{key}"
                raise RequestError(
                    f"init_from: {path} has {name}={found}, but result.json has {expected}; {REPAIR_HINT}"
                )
    return config


def inherit(request: Request, source: Source, sections: Sequence[str]) -> RunConfig:
    """``request``'s configuration, with those ``sections`` of the source's run that the request does not set.

    If the command line sets single keys of a section ("rule.scale"), the other keys are the run's.

    Raises:
        RequestError: the run's section has no such key, or its weights belong to another backbone.
    """
    config = request.config
    if source.config is None:
        return config
    taken = {}
    for name in sections:
        if name in request.explicit:
            continue
        taken[name] = getattr(source.config, name)
        for key in sorted(request.explicit):
            section, _, part = key.partition(".")
            if section == name and not hasattr(taken[name], part):
                raise RequestError(f"{key}: the run's {name} has no such key; add {name}=… to the command")
            if section == name:
                taken[name] = replace(taken[name], **{part: getattr(getattr(config, name), part)})
    if source.config.backbone != taken.get("backbone", config.backbone):
        raise RequestError(
            f"backbone: the weights in {source.path.parent} are of {source.config.backbone.name}, "
            f"remove backbone="
        )
    return replace(config, **taken)


def derive_run(request: Request, parent: Run | None) -> tuple[Run, Source]:
    """The run of a command that starts from trained weights, and these weights.

    Args:
        parent: the finished run to start from if the configuration names none.

    Raises:
        RequestError: the source is not a finished run or checkpoint, or does not fit the request.
    """
    config = request.config
    unused = unused_training_keys(request)
    if config.command == "attack" and parent is None and unused:
        raise RequestError(f"{unused[0]}: attack does not train when init_from or model.factory is given")
    if config.model.factory is not None:
        config, source = _imported(request)
        return make_run(config, source.lineage, surrogate_names(config)), source
    if parent:
        config = replace(config, init_from=str(parent.directory))
    source = open_source(Path(str(config.init_from)))
    if parent and config.command == "attack":  # the parent has this configuration
        config = replace(config, dataset=parent.config.dataset)
    else:
        config = inherit(replace(request, config=config), source, INHERITED[config.command])
        validate(config)  # inherited sections must fit the others
        check_channels(config, source)
    return make_run(config, source.lineage, surrogate_names(config)), source


def unused_training_keys(request: Request) -> list[str]:
    """Keys of the command line that only training uses."""
    return sorted(key for key in request.explicit if key.partition(".")[0] in TRAINING_KEYS)


def check_channels(config: RunConfig, source: Source) -> None:
    """Check the number of channels that the source's network takes, if it is known without reading images.

    Raises:
        RequestError: the network is for grey images and ``config``'s have three channels, or vice versa.
    """
    if source.config is None or config.dataset == source.config.dataset:
        return
    made_for, given = (_channels(each.dataset) for each in (source.config, config))
    if made_for != given and None not in (made_for, given):
        raise RequestError(
            f"dataset: {config.dataset.label} has {given}-channel images, the network of "
            f"{source.path.parent} takes {made_for} (trained on {source.config.dataset.label})"
        )


def _channels(dataset: DatasetConfig) -> int | None:
    """Channels of a dataset's images; None if unknown, as a single mean applies to any number of channels."""
    if len(dataset.mean) > 1:
        return len(dataset.mean)
    return 1 if isinstance(dataset, DigitsConfig | MnistConfig) else None


def _imported(request: Request) -> tuple[RunConfig, Source]:
    """The configuration of an attack on ``model.factory``'s network, and this network.

    Raises:
        RequestError: it cannot be created, or the command line also sets a backbone.
    """
    from sstune.commands import imported  # imports torch: identifying the network requires it

    config = request.config
    spec = str(config.model.factory)
    if request.sets("backbone"):
        raise RequestError(f"backbone: model.factory={spec} makes the network, remove backbone=")
    rule = config.rule if request.sets("rule") else RuleConfig(name="bp")
    return replace(config, backbone=BackboneConfig(name=spec), rule=rule), imported.source(spec)


def make_run(config: RunConfig, lineage: list[Ancestor], surrogates: Sequence[str] = ()) -> Run:
    """The run of a configuration on the data that is on disk now.

    Raises:
        RequestError: the data cannot be read.
    """
    data, earlier = fingerprint(config.dataset), earlier_fingerprint(config.dataset)
    return Run(config, lineage, data, surrogates, earlier)


def surrogate_names(config: RunConfig) -> list[str]:
    """Identities of the runs, or sha256 of the files, of an attack's surrogates.

    Raises:
        RequestError: one of them is not a run or checkpoint, or was trained on other data.
    """
    paths = [*config.attack.surrogates]
    if config.attack.name == "audit" and config.audit.surrogate is not None:
        paths.append(config.audit.surrogate)
    names = [str(ancestor_id(surrogate_source(path, config)[1].lineage[-1])) for path in paths]
    if config.attack.name == "audit" and config.audit.exact is not None:
        names.append(f"exact {ancestor_id(exact_source(config.audit.exact).lineage[-1])}")
    return names


def exact_source(spec: str) -> Source:
    """The network whose gradient stands for the exact one.

    Raises:
        RequestError: it cannot be created.
    """
    from sstune.commands import imported

    return imported.source(spec, "audit.exact")


def surrogate_source(path: str, config: RunConfig) -> tuple[RunConfig, Source]:
    """Configuration and weights of a surrogate: a network for the same task and classes.

    Raises:
        RequestError: not a finished run or checkpoint, or for other images or classes.
    """
    if names_factory(path):
        from sstune.commands import imported

        taken = replace(config, backbone=BackboneConfig(name=path), rule=RuleConfig(name="bp"))
        with rename_error_key(config):
            return taken, imported.source(path)
    with rename_error_key(config):
        source = open_source(Path(path))
        taken = inherit(Request(config), source, INHERITED["attack"])
        if source.config is None and config.model.factory is not None:
            raise RequestError(
                f"init_from: {path} does not state its architecture; give the directory of a run"
            )
        if taken.dataset.label != config.dataset.label:
            raise RequestError(
                f"init_from: {path} was trained on {taken.dataset.label}, not on {config.dataset.label}"
            )
    return taken, source


@contextmanager
def rename_error_key(config: RunConfig) -> Iterator[None]:
    """Inside, an error about ``init_from`` or ``model.factory`` names the key of the surrogates instead."""
    key = "audit.surrogate" if config.attack.name == "audit" else "attack.surrogates"
    try:
        yield
    except RequestError as error:
        raise RequestError(str(error).replace("init_from", key).replace("model.factory", key)) from error


def resolve_runs(request: Request) -> list[Run]:
    """The run of a request, preceded by its default ancestors, oldest first.

    Empty if an ancestor is not finished, as the run's identity depends on it.
    """
    if request.config.command == "train":
        return [make_run(request.config, [])]
    ancestors = []
    if has_default_parent(request.config):
        ancestors = resolve_runs(default_parent(request))
        if not ancestors or ancestors[-1].result() is None:
            return []
    run, _ = derive_run(request, ancestors[-1] if ancestors else None)
    return [*ancestors, run]


def resolve_run(request: Request) -> Run | None:
    """The run of a request; None if one of its default ancestors is not finished."""
    runs = resolve_runs(request)
    return runs[-1] if runs else None


def has_default_parent(config: RunConfig) -> bool:
    """Whether the configuration does not name the weights to start from."""
    return config.init_from is None and config.model.factory is None


def default_parent(request: Request) -> Request:
    """The request of the run that a command without ``init_from`` starts from, validated.

    ``finetune``: the default training of the same backbone, dataset, task and seed. ``attack``: the
    fine-tuning of the same configuration.
    """
    config = request.config
    if config.command == "finetune":
        shared = {name: getattr(config, name) for name in SHARED_WITH_DEFAULT_PARENT}
        parent = Request(replace(compose("train"), **shared))
    else:
        values = {item.name: getattr(config, item.name) for item in fields(config)}
        parent = replace(request, config=FinetuneConfig(**{**values, "command": "finetune", "force": False}))
    validate(parent.config)
    return parent
