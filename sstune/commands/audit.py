"""``sstune attack attack=audit``: every check in one run, one verdict, and a page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import cast

import torch
from torch import Tensor

from sstune import attacks, datasets, rules, tasks
from sstune.attacks import audit as checks
from sstune.commands.cells import CellRunner
from sstune.commands.data import load
from sstune.commands.lineage import Source
from sstune.commands.outcomes import Outcomes, per_sample, summary
from sstune.commands.victim import load_victim, own, row_fields, smooth_twin, surrogate
from sstune.interrupt import StopFlag
from sstune.packing import pack
from sstune.quantities import parse_eps
from sstune.row import AuditCell, AuditEntry, CheckEntry, Details, Measured, Measurement, measurement
from sstune.runs import Run
from sstune.schema import Gradient, RunConfig
from sstune.schema.audit import Status


def measure(run: Run, source: Source, device: torch.device, stop: StopFlag) -> Measured:
    """The audit's checks, and the robust accuracy that survives everything tried (attack ``audit``)."""
    config = run.config
    data = load(run, source)
    victim = load_victim(config, source, data, device)
    outcomes = Outcomes(run.directory, run.identity, victim)
    evidence = collect_evidence(config, victim, data, outcomes, stop)
    results = []
    for result in checks.audit(evidence, config.audit.skip):
        results.append(result)
        print(f"  {result.id:<4}{result.title}: {result.status}", flush=True)
    if config.attack.save_images:
        from sstune.commands.images import save_images

        shown = replace(config.attack, name=evidence.profile.attack)
        save_images(run.directory, shown, victim, evidence.pgd_for_images(), data)
    measured = [*_measured_by_default(evidence), *_worst_cases(evidence, config.attack.name)]
    row = row_fields(config, data, victim, measured)
    row["classes"] = data.classes
    row["audit"] = _summary(results, config.audit.skip, evidence)
    row["seconds"] = sum(cell.outcome.seconds for cell in evidence.cells.values())
    return row


def collect_evidence(
    config: RunConfig,
    victim: attacks.Victim,
    data: datasets.Splits,
    outcomes: Outcomes,
    stop: StopFlag,
) -> checks.Evidence:
    """The evidence that the checks compare; attacks made before a kill are taken from ``outcomes``."""

    def run(
        key: str,
        victim: attacks.Victim,
        attack: attacks.Attack,
        gradient_source: attacks.GradientSource,
        eps: str,
    ) -> attacks.Outcome:
        size = (
            config.attack.batch_size
            or attack.config.batch_size
            or attacks.largest_batch(victim, gradient_source)
        )
        shown = attack.name == evidence.profile.attack
        n_images = config.attack.save_images if shown else 0
        return CellRunner(victim, attack, gradient_source, size, outcomes, stop).run(key, eps, n_images)

    other = config.audit.surrogate
    twin = config.audit.exact
    exact = (
        replace(own(config, victim, Gradient.exact), eot=1)
        if twin is None
        else smooth_twin(twin, data, victim)
    )
    evidence = checks.Evidence(
        victim=victim,
        white_box=own(config, victim, Gradient.rule),
        exact=exact,
        surrogate=None if other is None else surrogate(other, config, data, victim),
        has_feedback=twin is not None or bool(rules.feedback_layers(victim.network)),
        n_classes=data.n_classes,
        eps=sorted(config.attack.eps, key=parse_eps),
        seed=config.seed,
        config=config.audit,
        run=run,
    )
    return evidence


def _summary(results: list[checks.CheckResult], skipped: list[str], evidence: checks.Evidence) -> AuditEntry:
    """A row's ``audit``: the verdict, the checks, and the attacks that only an audit makes."""
    profile = evidence.profile
    verdict, because = checks.verdict(results, skipped, profile.not_applicable)
    entry: AuditEntry = {
        "verdict": str(verdict),
        "because": because,
        "not_run": {result.id: result.text for result in results if result.status is Status.not_run},
        "checks": [cast(CheckEntry, asdict(result)) for result in results],
        "cells": [
            _audit_cell(evidence.victim, cell, gradient)
            for cell in evidence.cells.values()
            if not _is_default(cell, evidence)
            for gradient in _gradients(cell, evidence)
        ],
    }
    if not evidence.counted:
        entry |= {"pgd": profile.attack, "chance": evidence.chance}
    return entry


def _measured_by_default(evidence: checks.Evidence) -> Iterator[Measurement]:
    """Measurements of the attacks that ``sstune attack`` makes as well."""
    for cell in evidence.cells.values():
        if _is_default(cell, evidence):
            for gradient in _gradients(cell, evidence):
                yield _measured(evidence.victim, cell, gradient)


def _worst_cases(evidence: checks.Evidence, name: str) -> Iterator[Measurement]:
    """Measurements of the worst case per sample over all attacks, called ``name``, at each configured eps."""
    for eps in evidence.eps:
        left = evidence.worst_case(eps)
        score = tasks.Score.count(left) if evidence.counted else tasks.Score.mean(left)
        details: Details = {**score.fields(evidence.victim.task.metric), **per_sample(score)}
        yield measurement("test", score.n, attack=name, eps=eps, **details)


def _is_default(cell: checks.Cell, evidence: checks.Evidence) -> bool:
    """Whether ``sstune attack`` would measure the same. It would not with settings or at an eps that only the
    audit chooses, nor a black box at one eps on some of the samples."""
    usual = cell.gradient is not Gradient.none and " " not in cell.attack and cell.eps in evidence.eps
    return usual and len(cell.subset.index) == evidence.n


def _gradients(cell: checks.Cell, evidence: checks.Evidence) -> list[Gradient]:
    """The gradients that an attack counts for: both, for a network without feedback, if its settings are the
    default ones."""
    both = cell.gradient is Gradient.rule and not evidence.has_feedback and " " not in cell.attack
    return [Gradient.rule, Gradient.exact] if both else [cell.gradient]


def _measured(victim: attacks.Victim, cell: checks.Cell, gradient: Gradient) -> Measurement:
    """The measurement of an attack."""
    name = None if gradient is Gradient.none else str(gradient)
    index = cell.subset.index
    details = summary(victim.take(index), cell.outcome)
    details["source"] = cell.source
    return measurement("test", len(index), attack=cell.attack, gradient=name, eps=cell.eps, **details)


def _audit_cell(victim: attacks.Victim, cell: checks.Cell, gradient: Gradient) -> AuditCell:
    """The measurement, the samples that were attacked (``made_on``), and those it stands for (``among``)."""
    n = len(victim.clean)
    samples = {"made_on": _flags(cell.subset.index, n), "among": _flags(cell.subset.stands_for, n)}
    return cast(AuditCell, {**_measured(victim, cell, gradient), **samples})


def _flags(index: Tensor, n: int) -> str:
    flags = torch.zeros(n, dtype=torch.bool)
    flags[index] = True
    return pack(flags.numpy())
