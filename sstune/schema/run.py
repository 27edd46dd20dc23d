"""A run of a command, made of one option of each group."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from omegaconf import MISSING, DictConfig, OmegaConf

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
from sstune.schema.options import ADDED


@dataclass
class AuditConfig:
    """Of ``attack=audit``. ``strict``: exit with status 1 unless NOT MASKED. ``skip`` lists checks to leave
    out ("D8"). ``surrogate`` is a BP-trained run or checkpoint to transfer from. ``black_box_n`` samples are
    attacked by ``square_queries`` scores and, ``label_n`` of them, by ``label_queries`` labels each."""

    strict: bool = False
    skip: list[str] = field(default_factory=list)
    surrogate: str | None = None
    black_box_n: int = 200
    square_queries: int = 5000
    label_n: int = 100
    label_queries: int = 2000


@dataclass
class RunConfig:
    """One run of one command; ``init_from`` is a run directory or a file (null: see the command).

    ``batch_size`` images make an optimiser step, ``accumulate`` parts one after the other. ``ema`` is the
    decay per step of the average of the weights that is evaluated and kept instead of them. ``select`` says
    which epoch is kept; ``patience`` stops after so many epochs without a better one. ``alignment``: whether
    each epoch ends by comparing feedback and updates with weights and true gradients. ``workers`` are
    processes that read images that do not stay in memory. ``model.import`` names a ``module:factory`` that
    makes the network to attack.
    """

    command: str = MISSING
    backbone: BackboneConfig = MISSING
    dataset: DatasetConfig = MISSING
    task: TaskConfig = MISSING
    rule: RuleConfig = MISSING
    attack: AttackConfig = MISSING
    audit: AuditConfig = field(default_factory=AuditConfig)
    model: dict[str, str | None] = field(default_factory=lambda: {"import": None})
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
            node = _node(schema)
            store.store(group=f"schema/{group}", name=name, node=node, provider="sstune.schema")
    for group, added in ADDED.items():
        for name, option in added.items():
            chosen = OmegaConf.merge(_node(option.schema), option.values)
            store.store(group=group, name=name, node=chosen, provider="sstune.schema")


def _node(schema: type) -> DictConfig:
    node = OmegaConf.structured(schema)
    for item in fields(schema):
        if str(item.type).startswith("dict["):  # optimizer.lr_factors={head:10} adds a key to it
            OmegaConf.set_struct(node[item.name], False)
    return node
