"""The engine, its optimisers and its checkpoints."""

from sstune.training.checkpoint import Progress, load, save
from sstune.training.distributed import ALONE, World, join, judge, synchronise_normalisation
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
    "freeze",
    "join",
    "judge",
    "load",
    "parameter_groups",
    "save",
    "synchronise_normalisation",
]
