"""``sstune attack``: the same network, attacked through the rule's gradient and through the exact one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from sstune import attacks
from sstune.commands import audit
from sstune.commands.data import load
from sstune.commands.execution import once
from sstune.commands.finetune import finetune
from sstune.commands.outcomes import Outcomes, summary
from sstune.commands.pictures import save_images
from sstune.commands.source import Source, default_parent, descend, starts_from_default
from sstune.commands.train import measurement
from sstune.commands.victim import said_of, victim_of, views
from sstune.interrupt import StopFlag
from sstune.quantities import parse_eps
from sstune.runs import Run
from sstune.schema import AttackConfig, Gradient, IteratedConfig, RunConfig


def attack(config: RunConfig, asked: set[str]) -> Run:
    """Attack the network of ``init_from`` or ``model.factory``, or of ``sstune finetune``'s run of the same
    configuration.

    A run's backbone, dataset, task, rule and seed are kept unless the command line asks for others; with
    ``rule=`` the same weights get that rule's feedback, freshly drawn.

    Raises:
        RequestError: training settings are asked for beside ``init_from``.
    """
    parent = finetune(default_parent(config), asked, wait=True) if starts_from_default(config) else None
    run, source = descend(config, asked, parent)
    work = audit.measure if config.attack.name == "audit" else measure
    row = once(run, lambda run, device, stop: work(run, source, device, stop))
    if "audit" in row:
        audit.present(run, row)
    return run


def measure(run: Run, source: Source, device: torch.device, stop: StopFlag) -> dict[str, Any]:
    """Robust accuracy at each eps through each gradient; per-sample outcomes go to ``outcomes.npz``."""
    config = run.config
    data = load(run, source)
    victim = victim_of(config, source, data, device)
    n = len(victim.clean)
    outcomes = Outcomes(run.directory / "outcomes.npz", run.identity, victim.samples, victim.clean)
    measured = []
    for view in views(config, victim, data):
        method = attacks.ATTACKS[config.attack.name](_for_view(config.attack, view), config.seed)
        size = config.attack.batch_size or attacks.largest_batch(victim, view)
        attacks.check_zero_eps(victim, method, view, size)
        smaller = None
        for eps in _in_order(config.attack):
            key = " ".join(filter(None, [view.gradient, view.source, eps]))
            outcome = _cell(victim, method, view, eps, size, key, outcomes, smaller, stop)
            smaller = outcome if config.attack.cascade else None
            correct = int(outcome.right.sum())
            counts = {} if config.attack.targeted is None else {"reached": outcome.reached(victim.clean)}
            reached = f", {counts['reached']} at their target" if counts else ""
            print(f"  {config.attack.name} {key}: {correct}/{n} right{reached}", flush=True)
            gradient = None if view.gradient is Gradient.none else str(view.gradient)
            cell = {"attack": config.attack.name, "gradient": gradient, "eps": eps, "source": view.source}
            measured.append(measurement("test", n, correct, **cell, **counts, **summary(outcome)))
    if config.attack.save_images:
        save_images(run.directory, config.attack, victim, outcomes.cells, data.classes)
    seconds = sum(entry["seconds"] for entry in measured)
    return said_of(config, data, victim, measured) | {"seconds": seconds}


def _cell(
    victim: attacks.Victim,
    method: attacks.Attack,
    view: attacks.View,
    eps: str,
    batch_size: int,
    key: str,
    outcomes: Outcomes,
    smaller: attacks.Outcome | None,
    stop: StopFlag,
) -> attacks.Outcome:
    """One attack at one eps, from where it was left; saved after each batch.

    Raises:
        Stopped: a signal came; the last batch is saved.
    """
    begun = outcomes.get(key)
    if begun is not None and begun.part == len(method.parts):
        return begun
    if begun is None and smaller is not None:
        begun = smaller.at_larger_eps()
    elif begun is None:
        begun = attacks.Outcome.begin(victim.clean, victim.images(method.config.save_images))

    def save(outcome: attacks.Outcome) -> None:
        outcomes.save(key, outcome, stop)

    outcome = attacks.robust(
        victim, method, view, parse_eps(eps, method.config.norm), batch_size, begun, save
    )
    save(outcome)
    return outcome


def _for_view(config: AttackConfig, view: attacks.View) -> AttackConfig:
    """A surrogate cannot tell when the victim errs: the attack then makes all its steps."""
    if view.gradient is Gradient.surrogate and isinstance(config, IteratedConfig):
        return replace(config, early_exit=False)
    return config


def _in_order(config: AttackConfig) -> list[str]:
    """A cascade goes from small to large; otherwise as asked for."""
    if not config.cascade:
        return config.eps
    return sorted(config.eps, key=lambda eps: parse_eps(eps, config.norm))
