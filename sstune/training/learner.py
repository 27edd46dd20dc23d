"""A network in training, with its task and optimiser."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sstune.backbones import Network
from sstune.schema import RunConfig
from sstune.tasks import Task
from sstune.training.distributed import ALONE, World


@dataclass(frozen=True)
class Learner:
    """A network on its device, converted to its rule, with the optimiser of its trainable parameters.

    Args:
        world: the processes that train it together.
    """

    config: RunConfig
    network: Network
    task: Task
    optimizer: torch.optim.Optimizer
    device: torch.device
    world: World = ALONE
