"""Tasks: head, loss and metric."""

from sstune.tasks import classification
from sstune.tasks.evaluation import Judgement, evaluate
from sstune.tasks.registry import TASKS, Task, build

__all__ = ["TASKS", "Judgement", "Task", "build", "classification", "evaluate"]
