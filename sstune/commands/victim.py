"""The network under attack, with the weights of its run, and surrogates."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import nn

from sstune import attacks, backbones, datasets, rules, tasks
from sstune.commands import imported
from sstune.commands.data import entry
from sstune.commands.lineage import Source, exact_source, rename_error_key, surrogate_source
from sstune.commands.outcomes import per_sample
from sstune.commands.references import reference_of
from sstune.commands.weights import Weights
from sstune.row import DatasetsEntry, Details, Measured, Measurement, SkippedEntry, measurement
from sstune.schema import Draws, Gradient, Redraw, RequestError, RunConfig
from sstune.training.forward import compiled

# Every run attacks the same test images, whatever its seed, so that rules and seeds are paired.
SAMPLE_SEED = 0


def load_victim(
    config: RunConfig, source: Source, data: datasets.Splits, device: torch.device
) -> attacks.Victim:
    """The network of ``source`` with the rule of ``config``, and the test samples to attack.

    Prints notes on the data, and the score without an attack.
    """
    task = tasks.build(config.task, data.n_classes)
    network = build(config, source, data, task.outputs).to(device)
    test, samples = data.test.sample(config.attack.n, SAMPLE_SEED)
    reference = reference_of(task, network, data, device, source, config)
    victim = attacks.Victim.of(network, task, test, samples, device, reference)
    for note in [*data.notes, f"clean {victim.score}"]:
        print(f"  {note}", flush=True)
    return victim


def row_fields(
    config: RunConfig, data: datasets.Splits, victim: attacks.Victim, measured: list[Measurement]
) -> Measured:
    """The fields of an attack's row: the clean score, ``measured``, and the data."""
    score = victim.measured(victim.predictions)
    bounds = victim.task.bounds(victim.predictions, victim.split.targets.cpu(), victim.reference)
    score = replace(score, more={**score.more, **bounds})
    details: Details = {**score.fields(victim.task.metric), **per_sample(score)}
    clean = measurement("test", score.n, **details)
    used: DatasetsEntry = {"test": {**entry(data.test), "attacked": victim.split.digest}}
    if data.database is not None:
        used["database"] = entry(data.database)
    return {
        "n_classes": data.n_classes,
        "measurements": [clean, *measured],
        "precision": "float32",
        "compiled": str(config.compile) if config.compile else None,
        "datasets": used,
        "skipped": cast(SkippedEntry, data.skipped_summary),
        "notes": data.notes,
    }


def build(config: RunConfig, source: Source, data: datasets.Splits, outputs: int) -> nn.Module:
    """The network in eval mode, converted to ``config.rule``; with the run's own feedback, if it is its rule.

    Raises:
        RequestError: weights without a head for this dataset, or a network that gives no logits for it.
    """
    if source.network is not None:
        network = source.network
        imported.check_outputs(network, data.shape, outputs)
        network.register_forward_pre_hook(_contiguous)
        if config.rule.name != "bp":
            rules.convert(network, config.rule, config.seed, example=torch.zeros(2, *data.shape))
        return network
    weights = Weights(source)
    network = backbones.build(
        weights.resolved(config.backbone),
        data.shape,
        outputs,
        config.dataset.mean,
        config.dataset.std,
        weights=False,
    )
    replaced = weights.load_into(network)
    if replaced:  # fine to train from, but there is nothing to attack in an untrained head
        raise RequestError(f"init_from: {source.path} has no head for {config.dataset.label}: {replaced[0]}")
    example = network.prepare(torch.zeros(2, *data.shape))
    rules.convert(network.backbone, config.rule, config.seed, network.aliases, example)
    if source.config is not None and source.config.rule == config.rule:
        weights.load_feedback(network)
    return network.eval().to(memory_format=torch.channels_last)


def _contiguous(network: nn.Module, images: tuple[torch.Tensor]) -> torch.Tensor:
    """A forward pre-hook: others' code may take views, which not every layout of the images allows.

    A clone, since images of one channel call every layout contiguous.
    """
    return images[0].clone(memory_format=torch.contiguous_format)


def gradient_sources(
    config: RunConfig, victim: attacks.Victim, data: datasets.Splits
) -> list[attacks.GradientSource]:
    """The gradient sources of ``config.attack``, in the configured order."""
    found = []
    for gradient in config.attack.gradient:
        if gradient is Gradient.surrogate:
            found += [surrogate(path, config, data, victim) for path in config.attack.surrogates]
        else:
            found.append(own(config, victim, gradient))
    return found


def own(config: RunConfig, victim: attacks.Victim, gradient: Gradient) -> attacks.GradientSource:
    """The victim itself, under ``gradient``."""
    draws = config.attack.redraw
    if draws is None:
        every = getattr(config.rule, "redraw", Redraw.step) is Redraw.forward
        draws = Draws.forward if every else Draws.frozen
    forward = None
    if config.compile is not None:
        forward = compiled(victim.network, config.compile, victim.device, any_batch=True)
    return attacks.GradientSource(gradient, victim.network, "", draws, config.attack.eot, forward)


def surrogate(
    path: str, config: RunConfig, data: datasets.Splits, victim: attacks.Victim
) -> attacks.GradientSource:
    """Another network for the same task and classes, under its exact gradient.

    Raises:
        RequestError: no finished run or checkpoint, or not for images and classes like these.
    """
    taken, source = surrogate_source(path, config)
    with rename_error_key(config):
        network = build(taken, source, data, victim.task.outputs).to(victim.device)
        reference = reference_of(victim.task, network, data, victim.device, source, config)
    last = source.lineage[-1]
    name = f"{taken.backbone.name}-{taken.rule.name}-s{taken.seed}" if source.config else last["file"]
    digest = str(last.get("identity") or last["sha256"])
    name = f"{name}@{digest[:8]}"
    return attacks.GradientSource(Gradient.surrogate, network, name, reference=reference)


def smooth_twin(spec: str, data: datasets.Splits, victim: attacks.Victim) -> attacks.GradientSource:
    """A network with the victim's outputs, whose gradient stands for the exact one (BPDA, Athalye et al.
    2018, arXiv 1802.00420).

    Raises:
        RequestError: it cannot be created, or gives no logits for such images.
    """
    source = exact_source(spec)
    assert source.network is not None
    imported.check_outputs(source.network, data.shape, victim.task.outputs, "audit.exact")
    digest = str(source.lineage[-1]["sha256"])
    network = source.network.eval().to(victim.device)
    return attacks.GradientSource(Gradient.exact, network, f"{spec}@{digest[:8]}")
