"""The engine, its optimisers and its checkpoints."""

from sstune.training.checkpoint import Progress, load, save
from sstune.training.distributed import (
    ALONE,
    World,
    evaluate_distributed,
    init_distributed,
    synchronise_normalisation,
)
from sstune.training.engine import Trainer
from sstune.training.learner import Learner
from sstune.training.optimization import build_optimizer, build_schedule, freeze, parameter_groups
from sstune.training.step import Step

__all__ = [
    "ALONE",
    "Learner",
    "Progress",
    "Step",
    "Trainer",
    "World",
    "build_optimizer",
    "build_schedule",
    "evaluate_distributed",
    "freeze",
    "init_distributed",
    "load",
    "parameter_groups",
    "save",
    "synchronise_normalisation",
]
