"""What a run starts from: another run, a third-party file, or what another command makes by default."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from torch import nn

from sstune import rules
from sstune.backbones import Network, load_third_party
from sstune.commands import imported
from sstune.composition import compose, restore, restored_section
from sstune.datasets import earlier_fingerprint, fingerprint
from sstune.identity import TRAINING_KEYS, semantic
from sstune.runs import CONFIG, CURE, Run, name_of, read_result
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

MODEL = "model.pt"
# Sections of a run's configuration that its descendants keep, unless the command line asks for others.
INHERITED_BY = {
    "finetune": ("backbone", "dataset", "task"),
    "attack": ("backbone", "dataset", "task", "rule", "seed"),
}


@dataclass(frozen=True)
class Source:
    """Weights to start from, and where they came from.

    ``config`` is that of the run that made them, None for a third-party file. ``lineage`` lists all
    ancestors, oldest first. ``network`` is there already where somebody else's code makes it. ``datasets``:
    number and digest of the images of each split that the run had.
    """

    path: Path
    lineage: list[dict[str, Any]]
    config: RunConfig | None
    network: nn.Module | None = None
    datasets: dict[str, Any] = field(default_factory=dict)

    def load_weights(self, network: Network) -> list[str]:
        """Load forward weights only, into a network not yet converted; notes on what was replaced."""
        return load_third_party(network, self.path)

    def settled(self, backbone: BackboneConfig) -> BackboneConfig:
        """``backbone`` with what the run that made the weights settled by its images, if left open."""
        if self.config is None:
            return backbone
        return cast(BackboneConfig, restored_section(backbone, self._part("settled")))

    def load_feedback(self, network: Network) -> None:
        """Load the feedback that the run was trained with, into a network converted by the same rule."""
        state = {**rules.plain_state_dict(network.backbone), **self._part("feedback")}
        network.backbone.load_state_dict(state)

    def _part(self, name: str) -> dict[str, Any]:
        """What a run's file holds besides the forward weights."""
        content = torch.load(self.path, map_location="cpu", weights_only=True)
        return dict(content.get(name, {}))


def open_source(path: Path) -> Source:
    """A finished run's directory, or a checkpoint file.

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
    ancestor = {key: row[key] for key in ("command", "identity", "config")}
    config = _configuration(path, row)
    return Source(path / MODEL, [*row["lineage"], ancestor], config, datasets=row.get("datasets", {}))


def _check_weights(path: Path, digest: str | None) -> None:
    """Compare a run's weights with the digest in its row; rows of earlier versions have none.

    Raises:
        RequestError: the file is not what the run wrote.
    """
    try:
        if digest is None:
            check_zip(path)
        elif file_digest(path) != digest:
            raise ValueError("not the sha256 in result.json")
    except Exception as error:
        raise RequestError(f"init_from: {path} is damaged ({in_short(error)}); {CURE}") from error


def _configuration(directory: Path, row: dict[str, Any]) -> RunConfig:
    """The configuration of a run, from its ``config.yaml``.

    Raises:
        RequestError: that cannot be read, or is not the configuration in the row.
    """
    path = directory / CONFIG
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        config = restore(values)
    except Exception as error:  # of a damaged file, YAML and the schema may raise anything
        raise RequestError(f"init_from: {path} cannot be read ({in_short(error)}); {CURE}") from error
    own = json.loads(json.dumps(semantic(config)))
    for section, value in row["config"].items():
        pairs = value.items() if isinstance(value, dict) else [(None, value)]
        for key, expected in pairs:
            found = own.get(section, expected) if key is None else own.get(section, {}).get(key, expected)
            if found != expected:
                name = section if key is None else f"{section}.{key}"
                raise RequestError(
                    f"init_from: {path} says {name}={found}, and result.json {expected}; {CURE}"
                )
    return config


def inherit(config: RunConfig, source: Source, asked: set[str], sections: tuple[str, ...]) -> RunConfig:
    """``config`` with the ``sections`` of the source's run that the command line does not ask for itself.

    Where it asks for single keys of a section ("rule.scale"), only those differ from the run's.

    Raises:
        RequestError: the run's section has no such key, or its weights are another backbone's.
    """
    if source.config is None:
        return config
    taken = {}
    for name in sections:
        if name in asked:
            continue
        taken[name] = getattr(source.config, name)
        for key in sorted(asked):
            section, _, part = key.partition(".")
            if section == name and not hasattr(taken[name], part):
                raise RequestError(f"{key}: the run's {name} has no such key; say {name}=… as well")
            if section == name:
                taken[name] = replace(taken[name], **{part: getattr(getattr(config, name), part)})
    if source.config.backbone != taken.get("backbone", config.backbone):
        raise RequestError(
            f"backbone: the weights of {source.path.parent} are a {source.config.backbone.name}'s, "
            f"leave backbone= away"
        )
    return replace(config, **taken)


def descend(config: RunConfig, asked: set[str], parent: Run | None) -> tuple[Run, Source]:
    """The run of a command that starts from other weights, and those weights.

    Args:
        parent: the finished run to start from where the configuration names none.

    Raises:
        RequestError: the source is no finished run or checkpoint, or does not go with what is asked for.
    """
    idle = sorted(key for key in asked if key.partition(".")[0] in TRAINING_KEYS)
    if config.command == "attack" and parent is None and idle:
        raise RequestError(f"{idle[0]}: attack trains nothing when init_from or model.import is given")
    if config.model["import"] is not None:
        config, source = descend_from_import(config, asked)
        return run_of(config, source.lineage, surrogate_names(config)), source
    if parent:
        config = replace(config, init_from=str(parent.directory))
    source = open_source(Path(str(config.init_from)))
    if parent and config.command == "attack":  # made for this configuration, all of it
        config = replace(config, dataset=parent.config.dataset)
    else:
        config = inherit(config, source, asked, INHERITED_BY[config.command])
        validate(config)  # what is inherited has to go with what is asked for
        check_images(config, source)
    return run_of(config, source.lineage, surrogate_names(config)), source


def check_images(config: RunConfig, source: Source) -> None:
    """See that the source's network takes images like those of ``config``, as far as that is known unread.

    Raises:
        RequestError: it was made for grey images, and these have colours, or the other way round.
    """
    if source.config is None or config.dataset == source.config.dataset:
        return
    made_for, given = (_channels(each.dataset) for each in (source.config, config))
    if made_for != given and None not in (made_for, given):
        raise RequestError(
            f"dataset: {config.dataset.label} has images of {given} channels, the network of "
            f"{source.path.parent} takes {made_for} (trained on {source.config.dataset.label})"
        )


def _channels(dataset: DatasetConfig) -> int | None:
    """Of a dataset's images, where that is known without reading them: one mean may stand for any number."""
    if len(dataset.mean) > 1:
        return len(dataset.mean)
    return 1 if isinstance(dataset, DigitsConfig | MnistConfig) else None


def descend_from_import(config: RunConfig, asked: set[str]) -> tuple[RunConfig, Source]:
    """The configuration of an attack on ``model.import``'s network, and that network.

    Raises:
        RequestError: it cannot be made, or a backbone is asked for besides.
    """
    spec = str(config.model["import"])
    if any(key.partition(".")[0] == "backbone" for key in asked):
        raise RequestError(f"backbone: the network is the one of model.import={spec}, leave backbone= away")
    network = imported.make(spec)
    rule = config.rule if any(key.partition(".")[0] == "rule" for key in asked) else RuleConfig(name="bp")
    config = replace(config, backbone=BackboneConfig(name=spec), rule=rule)
    lineage = [{"file": spec, "sha256": imported.digest(spec, network)}]
    return config, Source(Path(spec), lineage, None, network)


def run_of(config: RunConfig, lineage: list[dict[str, Any]], surrogates: Sequence[str] = ()) -> Run:
    """The run of a configuration on the data as it lies there now.

    Raises:
        RequestError: the data cannot be read.
    """
    data, earlier = fingerprint(config.dataset), earlier_fingerprint(config.dataset)
    return Run(config, lineage, data, surrogates, earlier)


def surrogate_names(config: RunConfig) -> list[str]:
    """Identities of the runs, or sha256 of the files, that an attack looks through besides its victim.

    Raises:
        RequestError: one of them is none, or was trained on other data.
    """
    paths = [*config.attack.surrogates]
    if config.attack.name == "audit" and config.audit.surrogate is not None:
        paths.append(config.audit.surrogate)
    return [str(name_of(stand_in(path, config)[1].lineage[-1])) for path in paths]


def stand_in(path: str, config: RunConfig) -> tuple[RunConfig, Source]:
    """The configuration of another network on the same classes that an attack looks through, and its weights.

    Raises:
        RequestError: no finished run or checkpoint, or not for images and classes like these.
    """
    with named_after(config):
        source = open_source(Path(path))
        taken = inherit(config, source, set(), ("backbone", "dataset", "rule", "seed"))
        if source.config is None and config.model["import"] is not None:
            raise RequestError(f"init_from: {path} does not say what network it is for; name a run instead")
        if taken.dataset.label != config.dataset.label:
            raise RequestError(
                f"init_from: {path} was trained on {taken.dataset.label}, not on {config.dataset.label}"
            )
    return taken, source


@contextmanager
def named_after(config: RunConfig) -> Iterator[None]:
    """Inside, what is said of ``init_from`` is said of the key that names surrogates."""
    key = "audit.surrogate" if config.attack.name == "audit" else "attack.surrogates"
    try:
        yield
    except RequestError as error:
        raise RequestError(str(error).replace("init_from", key)) from error


def planned(config: RunConfig, asked: set[str]) -> Run | None:
    """The run that a configuration stands for; None while one that it starts from has yet to be made."""
    if config.command == "train":
        return run_of(config, [])
    parent = None
    if starts_from_default(config):
        parent = planned(default_parent(config), asked)
        if parent is None or parent.result() is None:
            return None
    return descend(config, asked, parent)[0]


def starts_from_default(config: RunConfig) -> bool:
    """Whether nothing says which weights to start from."""
    return config.init_from is None and config.model["import"] is None


def default_parent(config: RunConfig) -> RunConfig:
    """The run that a command without ``init_from`` starts from; checked, as nobody has seen it.

    ``finetune``: what ``sstune train`` makes of the same backbone, dataset, task and seed. ``attack``: what
    ``sstune finetune`` makes of the same configuration.
    """
    shared = ("backbone", "dataset", "task", "seed", "device", "threads", "out")
    if config.command == "finetune":
        parent: RunConfig = replace(compose("train"), **{name: getattr(config, name) for name in shared})
    else:
        values = {item.name: getattr(config, item.name) for item in fields(config)}
        parent = FinetuneConfig(**{**values, "command": "finetune", "force": False})
    validate(parent)
    return parent
