"""``sstune attack attack=audit``: every check in one run, one verdict, a page to look at."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from sstune import attacks, datasets, rules
from sstune.attacks import audit as checks
from sstune.commands.cells import Cells
from sstune.commands.data import load
from sstune.commands.lineage import Source
from sstune.commands.outcomes import Outcomes, summary
from sstune.commands.pictures import save_images
from sstune.commands.train import measurement
from sstune.commands.victim import own, said_of, surrogate, victim_of
from sstune.interrupt import StopFlag
from sstune.packing import pack
from sstune.quantities import parse_eps
from sstune.runs import Run
from sstune.schema import Gradient, RunConfig


def measure(run: Run, source: Source, device: torch.device, stop: StopFlag) -> dict[str, Any]:
    """The audit's checks, and the robust accuracy that survives everything tried (attack ``audit``)."""
    config = run.config
    data = load(run, source)
    victim = victim_of(config, source, data, device)
    cells = Cells(Outcomes(run, victim), config.attack, stop)
    evidence = evidence_of(config, victim, data, cells)
    n = len(victim.clean)
    found = []
    for check in checks.audit(evidence, config.audit.skip):
        found.append(check)
        print(f"  {check.id:<4}{check.title}: {check.status}", flush=True)
    verdict, because = checks.verdict(found, config.audit.skip)
    if config.attack.save_images:
        shown = replace(config.attack, name="pgd")
        save_images(run.directory, shown, victim, evidence.shown(), data.classes)
    usual = {key: cell for key, cell in evidence.cells.items() if _usual(cell, evidence)}
    worst = [
        measurement(
            "test",
            n,
            correct=int(right.sum()),
            attack="audit",
            gradient=None,
            eps=eps,
            outcomes=pack(right.numpy()),
        )
        for eps in evidence.eps
        for right in [evidence.worst_case(eps)]
    ]
    measured = [
        _measured(victim, cell, gradient) for cell in usual.values() for gradient in _names(cell, evidence)
    ]
    return said_of(config, data, victim, [*measured, *worst]) | {
        "classes": data.classes,
        "audit": {
            "verdict": str(verdict),
            "because": because,
            "not_run": {check.id: check.text for check in found if check.status is checks.Status.not_run},
            "checks": [asdict(check) for check in found],
            "cells": [
                _part(victim, cell, gradient)
                for key, cell in evidence.cells.items()
                if key not in usual
                for gradient in _names(cell, evidence)
            ],
        },
        "seconds": sum(cell.outcome.seconds for cell in evidence.cells.values()),
    }


def evidence_of(
    config: RunConfig,
    victim: attacks.Victim,
    data: datasets.Splits,
    cells: Cells,
) -> checks.Evidence:
    """What the checks look at; attacks made before a kill are taken from ``outcomes``."""

    def run(
        key: str, victim: attacks.Victim, attack: attacks.Attack, view: attacks.View, eps: str
    ) -> attacks.Outcome:
        begin = victim.begin(config.attack.save_images if attack.name == "pgd" else 0)
        return cells.run(key, victim, attack, view, eps, begin)

    other = config.audit.surrogate
    exact = replace(own(config, victim, Gradient.exact), eot=1)
    return checks.Evidence(
        victim=victim,
        own=own(config, victim, Gradient.rule),
        exact=exact,
        surrogate=None if other is None else surrogate(other, config, data, victim),
        has_feedback=bool(rules.feedback_layers(victim.network)),
        n_classes=data.n_classes,
        eps=sorted(config.attack.eps, key=parse_eps),
        seed=config.seed,
        config=config.audit,
        run=run,
    )


def _usual(cell: checks.Cell, evidence: checks.Evidence) -> bool:
    """Whether it is what ``sstune attack`` would measure, and no variation that only the audit makes: other
    settings, other eps, or a black box at one eps on some of the samples."""
    return cell.gradient is not Gradient.none and " " not in cell.attack and cell.eps in evidence.eps


def _names(cell: checks.Cell, evidence: checks.Evidence) -> list[Gradient]:
    """The gradients that an attack was made through: of a network without feedback the one is both, but only
    the plain attacks are shown for both."""
    one = cell.gradient is Gradient.rule and not evidence.has_feedback and " " not in cell.attack
    return [Gradient.rule, Gradient.exact] if one else [cell.gradient]


def _measured(victim: attacks.Victim, cell: checks.Cell, gradient: Gradient, **more: str) -> dict[str, Any]:
    """An attack of the audit as a measurement."""
    name = None if gradient is Gradient.none else str(gradient)
    labels = {"attack": cell.attack, "gradient": name, "eps": cell.eps, "source": cell.source}
    found = summary(victim.take(cell.index), cell.outcome)
    return measurement("test", len(cell.index), **labels, **found, **more)


def _part(victim: attacks.Victim, cell: checks.Cell, gradient: Gradient) -> dict[str, Any]:
    """The same of an attack that only the audit makes; packed, which of its ``n`` samples it was ``made_on``,
    and which of them it stands for, ``among``."""
    n = len(victim.clean)
    which = {"made_on": _flags(cell.index, n), "among": _flags(cell.among, n)}
    return _measured(victim, cell, gradient, **which)


def _flags(index: Tensor, n: int) -> str:
    flags = torch.zeros(n, dtype=torch.bool)
    flags[index] = True
    return pack(flags.numpy())
