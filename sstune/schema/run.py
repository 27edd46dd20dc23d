"""The configuration of a run of each command."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf

from sstune.schema.aliases import ALIASES
from sstune.schema.attacks import AttackConfig
from sstune.schema.choices import Compile, Precision, Select
from sstune.schema.datasets import DatasetConfig
from sstune.schema.groups import (
    GROUPS,
    BackboneConfig,
    OptimizerConfig,
    RuleConfig,
    ScheduleConfig,
    TaskConfig,
)
from sstune.schema.keys import Identity, Key, Range, Role, key, keys_of
from sstune.schema.options import ADDED
from sstune.schema.sections import AdversaryConfig, AuditConfig, ModelConfig, SplitConfig


@dataclass
class RunConfig:
    """The configuration of one run."""

    command: str = key(MISSING, "The command: train, finetune or attack.")
    backbone: BackboneConfig = key(MISSING, "The network.")
    dataset: DatasetConfig = key(MISSING, "The images.")
    split: SplitConfig = key(SplitConfig(), "How a retrieval benchmark is made of the images.")
    task: TaskConfig = key(MISSING, "What the network is trained for.")
    rule: RuleConfig = key(MISSING, "The learning rule.")
    attack: AttackConfig = key(MISSING, "The attack.", role=Role.ATTACK)
    adversary: AdversaryConfig = key(AdversaryConfig(), "Adversarial training.")
    audit: AuditConfig = key(AuditConfig(), "The masking audit.", role=Role.ATTACK)
    model: ModelConfig = key(ModelConfig(), "A network made by other code.", identity=Identity.NEVER)
    optimizer: OptimizerConfig = key(MISSING, "The optimiser.", role=Role.TRAINING)
    schedule: ScheduleConfig = key(MISSING, "The schedule of the learning rate.", role=Role.TRAINING)
    epochs: int = key(MISSING, "Number of epochs.", within=Range(1, 1e6), role=Role.TRAINING)
    batch_size: int = key(
        MISSING, "Number of images in an optimiser step.", within=Range(1, 1e6), role=Role.TRAINING
    )
    accumulate: int = key(
        1,
        "Number of parts in which a batch is computed, one after the other, to save memory.",
        within=Range(1, 1e6),
        role=Role.TRAINING,
        identity=Identity.UNLESS_DEFAULT,
    )
    clip_norm: float | None = key(
        None,
        "Largest L2 norm of the gradient, which is scaled down to it; null: no clipping.",
        within=Range(0, above=True),
        role=Role.TRAINING,
    )
    ema: float | None = key(
        None,
        "Decay per optimiser step of an exponential moving average of the weights, which is evaluated and "
        "kept instead of them; null: none.",
        within=Range(0, 0.999999, above=True),
        role=Role.TRAINING,
        identity=Identity.UNLESS_DEFAULT,
    )
    select: Select = key(
        Select.best,
        "Epoch whose weights are kept: the best on the validation images, or the last.",
        role=Role.TRAINING,
        identity=Identity.UNLESS_DEFAULT,
    )
    patience: int | None = key(
        None,
        "Stop after this number of epochs without improvement on the validation images; null: never.",
        within=Range(1, 1e6),
        role=Role.TRAINING,
        identity=Identity.UNLESS_DEFAULT,
    )
    alignment: bool = key(
        True,
        "Compare feedback with weights, and updates with exact gradients, after each epoch.",
        identity=Identity.NEVER,
    )
    init_from: str | None = key(
        None,
        "Run directory or checkpoint file to start from; null: finetune starts from the train run of the "
        "same configuration, attack from its finetune run.",
        identity=Identity.NEVER,
    )
    seed: int = key(0, "Seed of every random draw.", within=Range(0, 2**32 - 1))
    precision: Precision = key(
        Precision.float32,
        "Arithmetic of the training step; evaluation and attacks always use float32.",
        role=Role.TRAINING,
    )
    compile: Compile | None = key(
        None, "Mode of torch.compile for the training step; null: not compiled.", identity=Identity.NEVER
    )
    deterministic: bool = key(
        False,
        "Use only algorithms that give the same bits in every run (on CUDA; some are slower).",
        identity=Identity.NEVER,
    )
    device: str = key("auto", "auto, cpu, cuda, or one GPU: cuda:1.", identity=Identity.NEVER)
    threads: int | None = key(
        None,
        "Number of CPU threads; null: one per core.",
        within=Range(1, 1024),
        identity=Identity.NEVER,
    )
    workers: int | None = key(
        None,
        "Number of processes that read images that are not held in memory; null: number of cores - 1.",
        within=Range(0, 1024),
        identity=Identity.NEVER,
    )
    out: str = key("runs", "Parent directory of the run directories.", identity=Identity.NEVER)
    force: bool = key(False, "Repeat a finished run.", identity=Identity.NEVER)


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


def sections() -> dict[str, list[type]]:
    """Section of a configuration -> the dataclasses that it may be an instance of; ``""``: its top level."""
    kinds: dict[str, list[type]] = {
        name: [hint]
        for name, hint in get_type_hints(RunConfig).items()
        if isinstance(hint, type) and is_dataclass(hint) and name not in GROUPS
    }
    return {"": [RunConfig], **kinds, **{group: list(options.values()) for group, options in GROUPS.items()}}


def declared() -> dict[str, Key]:
    """Every dotted key, and its declaration in the first class of the group that has it."""
    found: dict[str, Key] = {}
    for section, kinds in sections().items():
        for kind in kinds:
            for name, declaration in keys_of(kind).items():
                found.setdefault(f"{section}.{name}".lstrip("."), declaration)
    return found


def register() -> None:
    """Register every schema in Hydra's store, from which the defaults lists of ``conf/*.yaml`` take them."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    for command, schema in COMMANDS.items():
        node = OmegaConf.structured(schema)
        for section in sections():
            if section and section not in GROUPS:
                _admit_aliases(section, node[section])
        store.store(group="schema", name=command, node=node, provider="sstune.schema")
    for group, options in GROUPS.items():
        for name, schema in options.items():
            node = _node(group, schema)
            store.store(group=f"schema/{group}", name=name, node=node, provider="sstune.schema")
    for group, added in ADDED.items():
        for name, option in added.items():
            chosen = OmegaConf.merge(_node(group, option.schema), option.values)
            store.store(group=group, name=name, node=chosen, provider="sstune.schema")


def _node(group: str, schema: type) -> DictConfig:
    node = OmegaConf.structured(schema)
    for item in fields(schema):
        if str(item.type).startswith("dict["):  # optimizer.lr_factors={head:10} adds a key to it
            OmegaConf.set_struct(node[item.name], False)
    _admit_aliases(group, node)
    return node


def _admit_aliases(section: str, node: DictConfig) -> None:
    """Allow presets to use earlier names of keys; :func:`resolve_aliases` renames these."""
    if any(old.partition(".")[0] == section for old in ALIASES):
        OmegaConf.set_struct(node, False)


def resolve_aliases(config: DictConfig) -> list[str]:
    """Rename earlier names of keys that presets set; from then on only keys of the schema can be set.

    Returns:
        Dotted keys that are unknown.
    """
    unknown = []
    for section in dict.fromkeys(old.partition(".")[0] for old in ALIASES):
        owner = config.get(section)
        kind = None if owner is None else OmegaConf.get_type(owner)
        for name in [] if kind is None else sorted(set(owner) - set(keys_of(kind))):
            new = ALIASES.get(f"{section}.{name}")
            if new is None:
                unknown.append(f"{section}.{name}")
                continue
            OmegaConf.update(config, new, owner[name])
            del owner[name]
        if owner is not None:
            OmegaConf.set_struct(owner, True)
    return unknown
