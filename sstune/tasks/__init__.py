"""Tasks: head, loss and metric."""

from sstune.tasks import classification
from sstune.tasks.evaluation import Judgement, eval_mode, evaluate
from sstune.tasks.registry import TASKS, Task, build

__all__ = ["TASKS", "Judgement", "Task", "build", "classification", "eval_mode", "evaluate"]
