"""``sstune attack``: the same network, attacked through the rule's gradient and through the exact one."""

from __future__ import annotations

from dataclasses import replace

import torch

from sstune import attacks
from sstune.commands import audit
from sstune.commands.cells import CellRunner
from sstune.commands.data import load
from sstune.commands.finetune import finetune
from sstune.commands.images import save_images
from sstune.commands.lineage import Source, default_parent, derive_run, has_default_parent
from sstune.commands.outcomes import Outcomes, summary
from sstune.commands.run_once import run_once
from sstune.commands.victim import gradient_sources, load_victim, row_fields
from sstune.composition import Request
from sstune.interrupt import StopFlag
from sstune.quantities import parse_eps
from sstune.row import Measured, Measurement, measurement
from sstune.runs import Run
from sstune.schema import AttackConfig, Gradient, IteratedConfig, RunConfig


def attack(request: Request) -> Run:
    """Attack the network of ``init_from`` or ``model.factory``, or of ``sstune finetune``'s run of the same
    configuration.

    A run's backbone, dataset, task, rule and seed are kept unless the command line asks for others; with
    ``rule=`` the same weights get that rule's feedback, freshly drawn.

    Raises:
        RequestError: the command line sets training keys as well as ``init_from``.
    """
    parent = finetune(default_parent(request), wait=True) if has_default_parent(request.config) else None
    run, source = derive_run(request, parent)
    work = audit.measure if run.config.attack.name == "audit" else measure
    run_once(run, lambda run, device, stop: work(run, source, device, stop))
    return run


def measure(run: Run, source: Source, device: torch.device, stop: StopFlag) -> Measured:
    """The score at each eps through each gradient; writes the outcome of each sample to ``outcomes.npz``."""
    config = run.config
    data = load(run, source)
    victim = load_victim(config, source, data, device)
    outcomes = Outcomes(run.directory, run.identity, victim)
    measured: list[Measurement] = []
    for gradient_source in gradient_sources(config, victim, data):
        method = attacks.ATTACKS[config.attack.name](_config_for(config.attack, gradient_source), config.seed)
        size = config.attack.batch_size or attacks.largest_batch(victim, gradient_source)
        attacks.check_zero_eps(victim, method, gradient_source, size)
        cells = CellRunner(victim, method, gradient_source, size, outcomes, stop)
        smaller: attacks.Outcome | None = None
        for eps in _ordered_eps(config.attack):
            key = " ".join(filter(None, [gradient_source.gradient, gradient_source.name, eps]))
            outcome = cells.run(key, eps, config.attack.save_images, smaller)
            smaller = outcome if config.attack.cascade else None
            measured.append(_measurement(config, victim, gradient_source, eps, outcome))
            print(f"  {config.attack.name} {key}: {_result_text(victim, outcome, measured[-1])}", flush=True)
    if config.attack.save_images:
        save_images(run.directory, config.attack, victim, outcomes.cells, data)
    row = row_fields(config, data, victim, measured)
    row["seconds"] = sum(entry["seconds"] for entry in measured)
    return row


def _measurement(
    config: RunConfig,
    victim: attacks.Victim,
    gradient_source: attacks.GradientSource,
    eps: str,
    outcome: attacks.Outcome,
) -> Measurement:
    details = summary(victim, outcome)
    details["source"] = gradient_source.name
    if config.attack.targeted is not None:
        details["reached"] = outcome.n_target_hits(victim.clean)
    return measurement(
        "test",
        len(victim.clean),
        attack=config.attack.name,
        gradient=None if gradient_source.gradient is Gradient.none else str(gradient_source.gradient),
        eps=eps,
        **details,
    )


def _result_text(victim: attacks.Victim, outcome: attacks.Outcome, measured: Measurement) -> str:
    reached = f", {measured['reached']} at their target" if "reached" in measured else ""
    return f"{victim.score_of(outcome)}{reached}"


def _config_for(config: AttackConfig, gradient_source: attacks.GradientSource) -> AttackConfig:
    """Without early exit on a surrogate, which cannot tell whether the victim misclassifies."""
    if gradient_source.gradient is Gradient.surrogate and isinstance(config, IteratedConfig):
        return replace(config, early_exit=False)
    return config


def _ordered_eps(config: AttackConfig) -> list[str]:
    """In ascending order for a cascade, otherwise in the configured order."""
    if not config.cascade:
        return config.eps
    return sorted(config.eps, key=lambda eps: parse_eps(eps, config.norm))
