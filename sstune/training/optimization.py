"""Optimisers, parameter groups, and schedules as functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from sstune import rules
from sstune.backbones import Network
from sstune.schema import (
    AdamConfig,
    AdamWConfig,
    CosineConfig,
    MultistepConfig,
    OptimizerConfig,
    RequestError,
    ScheduleConfig,
    SgdConfig,
)
from sstune.tasks import Task


def freeze(network: Network, patterns: list[str]) -> None:
    """Exclude the layers that ``patterns`` name from training.

    Raises:
        RequestError: a pattern names no module, or nothing would be left to train.
    """
    for pattern in rules.resolve(patterns, "optimizer.freeze", _modules(network), network.aliases):
        named = [parameter for name, parameter in _parameters(network) if rules.matches(name, [pattern])]
        if not named:
            raise RequestError(f"optimizer.freeze: {pattern!r} names nothing that is trained")
        for parameter in named:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise RequestError(f"optimizer.freeze: {patterns} leaves nothing to train")


def _modules(network: Network) -> dict[str, nn.Module]:
    """What a pattern can name: all but feedback, which goes with its layer."""
    feedback = {layer.feedback for layer in rules.feedback_layers(network.backbone).values()}
    return {name: module for name, module in network.backbone.named_modules() if module not in feedback}


def _parameters(network: Network) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters by name, where trained feedback has the name of its layer's weight."""
    layers = rules.feedback_layers(network.backbone)
    weights = {
        parameter: f"{name}.weight"
        for name, layer in layers.items()
        for parameter in layer.feedback.parameters()
    }
    for name, parameter in network.backbone.named_parameters():
        yield weights.get(parameter, name), parameter


def frozen_modules(network: nn.Module) -> list[nn.Module]:
    """Modules with parameters none of which is trained: their running statistics stay as they are, too."""
    return [
        module
        for module in network.modules()
        if any(True for _ in module.parameters()) and not any(p.requires_grad for p in module.parameters())
    ]


class Average(AveragedModel):
    """A copy of ``network`` that follows it as an exponential moving average (statistics are copied).

    torch's own arithmetic, but the number of updates stays on the host, which need not wait to send it.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__(network)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        averaged: list[Tensor] = [*self.module.parameters()]
        present: list[Tensor] = [*model.parameters()]
        if self.n_averaged == 0:
            torch._foreach_copy_(averaged, present)
        else:
            torch._foreach_lerp_(averaged, present, 1 - self.decay)
        for kept, found in zip(self.module.buffers(), model.buffers(), strict=True):
            kept.copy_(found)
        self.n_averaged += 1


def average_of(network: nn.Module, decay: float | None) -> Average | None:
    """The average of ``network``, if there is to be one."""
    return None if decay is None else Average(network, decay)


def parameter_groups(network: Network, factors: dict[str, float]) -> list[dict[str, Any]]:
    """The parameters to train by their factor on the learning rate, as an optimiser takes them.

    A layer's trained feedback is in the group of its weight, as its rule needs.

    Raises:
        RequestError: a pattern names no module.
    """
    patterns = rules.resolve(list(factors), "optimizer.lr_factors", _modules(network), network.aliases)
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in _parameters(network):
        factor = 1.0
        for pattern, value in zip(patterns, factors.values(), strict=True):
            if rules.matches(name, [pattern]):
                factor = value
        if parameter.requires_grad:
            groups.setdefault(factor, []).append(parameter)
    return [{"params": parameters, "lr_factor": factor} for factor, parameters in groups.items()]


def build_optimizer(
    config: OptimizerConfig, network: Network, task: Task | None = None
) -> torch.optim.Optimizer:
    """The optimiser of the trainable parameters of ``network`` and of the loss of ``task``, on their device.

    Raises:
        RequestError: a pattern of ``lr_factors`` names no module.
    """
    factors = {} if task is None else task.lr_factors
    parameters = parameter_groups(network, {**factors, **config.lr_factors})
    if task is not None and task.parameters():
        parameters.append({"params": list(task.parameters()), "lr_factor": task.lr_factor})
    fused = config.fused if config.fused is not None else network.mean.device.type == "cuda"
    if isinstance(config, SgdConfig):
        return torch.optim.SGD(
            parameters,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            fused=fused,
        )
    assert isinstance(config, AdamWConfig)
    kind = torch.optim.Adam if isinstance(config, AdamConfig) else torch.optim.AdamW
    return kind(
        parameters,
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        weight_decay=config.weight_decay,
        fused=fused,
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
