"""The engine, its optimisers and its checkpoints."""

from sstune.training.checkpoint import Progress, load, save
from sstune.training.engine import Trainer
from sstune.training.optimization import build_optimizer, build_schedule

__all__ = ["Progress", "Trainer", "build_optimizer", "build_schedule", "load", "save"]
