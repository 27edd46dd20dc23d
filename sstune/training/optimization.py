"""Optimisers, and schedules of learning rate and weight decay as pure functions of time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from sstune.schema import (
    AdamWConfig,
    CosineConfig,
    MultistepConfig,
    OptimizerConfig,
    ScheduleConfig,
    SgdConfig,
)


def build_optimizer(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """SGD or AdamW over ``parameters`` with one learning rate and weight decay."""
    parameters = list(parameters)
    if isinstance(config, SgdConfig):
        return torch.optim.SGD(
            parameters,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )
    assert isinstance(config, AdamWConfig)
    return torch.optim.AdamW(
        parameters, lr=config.lr, betas=(config.betas[0], config.betas[1]), weight_decay=config.weight_decay
    )


def build_schedule(config: ScheduleConfig, epochs: int, steps_per_epoch: int) -> Callable[[int], float]:
    """The factor on the learning rate at an optimiser step (0-based).

    Linear warm-up reaches 1 at step ``warmup_epochs * steps_per_epoch``; cosine then falls to
    ``final_factor`` at the end of training; multistep multiplies by ``gamma`` at each milestone (epochs).
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    total = epochs * steps_per_epoch

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if isinstance(config, CosineConfig):
            progress = (step - warmup) / max(1, total - warmup)
            return config.final_factor + (1 - config.final_factor) * (1 + math.cos(math.pi * progress)) / 2
        if isinstance(config, MultistepConfig):
            return config.gamma ** sum(step >= epoch * steps_per_epoch for epoch in config.milestones)
        return 1.0

    return factor


def weight_decay_factor(config: OptimizerConfig, epoch: int) -> float:
    """The factor on weight decay in a 0-based epoch: ``weight_decay_gamma`` for each milestone reached."""
    return config.weight_decay_gamma ** sum(
        epoch >= milestone for milestone in config.weight_decay_milestones
    )
