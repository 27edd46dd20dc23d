"""Tasks: the head, the loss, the metric, and the objectives of attacks."""

from sstune.tasks import classification, hashing
from sstune.tasks.auditing import AuditProfile
from sstune.tasks.evaluation import Evaluation, evaluate, predict, with_interval
from sstune.tasks.neighbours import Neighbours
from sstune.tasks.objective import Goal, Objective
from sstune.tasks.score import Score
from sstune.tasks.task import TASKS, Task, build

__all__ = [
    "TASKS",
    "AuditProfile",
    "Evaluation",
    "Goal",
    "Neighbours",
    "Objective",
    "Score",
    "Task",
    "build",
    "classification",
    "evaluate",
    "hashing",
    "predict",
    "with_interval",
]
