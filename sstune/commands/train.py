"""``sstune train``: a network from scratch, by backpropagation unless the rule says otherwise."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch

from sstune import backbones, datasets, rules, tasks, training
from sstune.commands.data import described, load
from sstune.commands.lineage import MODEL, Source, make_run
from sstune.commands.references import write_reference
from sstune.commands.run_once import run_once
from sstune.commands.weights import Weights
from sstune.composition import Request
from sstune.interrupt import StopFlag
from sstune.row import (
    AlignmentEntry,
    LayersEntry,
    Measured,
    PreprocessingEntry,
    SkippedEntry,
    measurement,
)
from sstune.runs import Run
from sstune.schema import RequestError, RunConfig
from sstune.storage import file_digest, write_bytes, write_text


def train(request: Request, wait: bool = False) -> Run:
    """Train from random or hub weights; with ``wait``, for another process that is at work on it."""
    run = make_run(request.config, [])
    run_once(run, lambda run, device, stop: fit_network(run, None, device, stop), wait)
    return run


def fit_network(run: Run, source: Source | None, device: torch.device, stop: StopFlag) -> Measured:
    """Train ``run``'s network from ``source``'s weights; the epoch is chosen on validation.

    Returns what the row holds: the score on validation and, measured once, on test.
    """
    torch.manual_seed(run.config.seed)
    world = training.init_distributed()
    with world.main_process_first():  # it decodes or downloads what the others then find
        data = load(run, source, world.is_main)
    config = run.config
    learner, conversion, notes = build(config, source, data, device, world)
    trainer, progress = fit(run, learner, data, stop)
    network, task = learner.network, learner.task
    network.load_state_dict(progress.best["network"])
    if world.is_main:
        write_history(run.directory, progress)  # again: a kill may have come between checkpoint and tables
        write_model(run.directory / MODEL, network)
    reference = task.reference(network, data, device)
    if world.is_main:
        write_reference(task, reference, data, run.directory / MODEL)
    found = training.evaluate_distributed(network, task, data.test, device, world, reference)
    targets = data.test.targets.cpu()
    test = tasks.with_interval(found.score, task, found.predictions, targets, reference)
    print(f"  epoch {progress.best['epoch']} chosen: test {test}", flush=True)
    published = backbones.preprocessing(config.backbone)
    return {
        "n_classes": data.n_classes,
        "measurements": [
            measurement("val", len(data.val), **progress.best["val"]),
            measurement("test", len(data.test), **test.fields(task.metric)),
        ],
        "epoch": progress.best["epoch"],
        "epochs_trained": progress.epoch,
        "seconds": progress.seconds,
        "model_sha256": file_digest(run.directory / MODEL) if world.is_main else None,
        "alignment": [_known(asdict(layer)) for layer in trainer.alignment()],
        "datasets": described(data),
        "skipped": cast(SkippedEntry, data.skipped_summary),
        "preprocessing": None if published is None else cast(PreprocessingEntry, asdict(published)),
        "precision": str(config.precision),
        "compiled": str(config.compile) if config.compile else None,
        "processes": world.size,
        "notes": notes,
        "layers": cast(LayersEntry, asdict(conversion)),
    }


def build(
    config: RunConfig,
    source: Source | None,
    data: datasets.Splits,
    device: torch.device,
    world: training.World,
) -> tuple[training.Learner, rules.Conversion, list[str]]:
    """The network with its rule and optimiser, on its device; the converted layers; and notes.

    Raises:
        RequestError: the network is not for these images, or a pattern names none of its layers.
    """
    task = tasks.build(config.task, data.n_classes)
    weights = None if source is None else Weights(source)
    network = backbones.build(
        config.backbone if weights is None else weights.resolved(config.backbone),
        data.shape,
        task.outputs,
        config.dataset.mean,
        config.dataset.std,
        weights=weights is None,
    )
    for head in network.heads:
        task.init_head(head)
    notes = data.notes + network.notes + (weights.load_into(network) if weights else [])
    example = network.prepare(torch.zeros(2, *data.shape))
    conversion = rules.convert(network.backbone, config.rule, config.seed, network.aliases, example)
    if world.size > 1:
        notes += training.synchronise_normalisation(network, device)
    for note in [*notes, f"{config.rule.name}: {conversion}"]:
        print(f"  {note}", flush=True)
    training.freeze(network, config.optimizer.freeze)
    network.to(device).to(memory_format=torch.channels_last)
    task.begin_training(data, config.seed, device)
    optimizer = training.build_optimizer(config.optimizer, network, task)
    return training.Learner(config, network, task, optimizer, device, world), conversion, notes


def fit(
    run: Run, learner: training.Learner, data: datasets.Splits, stop: StopFlag
) -> tuple[training.Trainer, training.Progress]:
    """Train all epochs, from the run's checkpoint if there is one.

    Raises:
        RequestError: a batch cannot be shared by so many processes.
        Stopped: a signal came; the state is saved.
    """
    config, world = learner.config, learner.world
    if min(len(data.train), config.batch_size) < world.size:
        raise RequestError(
            f"batch_size: {config.batch_size} of {len(data.train)} images cannot be shared by {world.size} "
            f"processes"
        )
    augmentation = datasets.Augmentation.of(config.dataset)
    shard = datasets.Shard(world.rank, world.size)
    loader = datasets.Loader(data.train, config.batch_size, learner.device, config.seed, augmentation, shard)
    checkpoint = run.directory / "checkpoint.pt"

    def save(progress: training.Progress) -> None:
        if not world.is_main:
            return
        training.save(checkpoint, run.identity, progress, learner)
        write_history(run.directory, progress)
        if progress.step == 0:
            print(f"  {_epoch_line(progress.history[-1], learner)}", flush=True)

    with world.main_process_first():  # a damaged one is set aside, and the others find none either
        found = training.load(checkpoint, run.identity, learner)
    progress = found or training.Progress()
    if progress.epoch or progress.step:
        print(f"  resuming in epoch {progress.epoch + 1} at step {progress.step}", flush=True)
    trainer = training.Trainer(learner, loader, data, save, stop)
    with subnormals_as_zero():
        trainer.fit(progress)
    return trainer, progress


@contextmanager
def subnormals_as_zero() -> Iterator[None]:
    """Inside, a single CPU thread takes subnormal numbers for zero.

    The errors of confident samples fade into them in training, and a CPU multiplies them many times slower.
    The setting is one thread's own, so with several threads it would depend on which thread computes what.
    """
    torch.set_flush_denormal(torch.get_num_threads() == 1)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _known(entry: dict[str, Any]) -> AlignmentEntry:
    """An entry of a row, with null for undefined values, as JSON has no NaN."""
    known = {key: None if value != value else value for key, value in entry.items()}
    return cast(AlignmentEntry, known)


def _epoch_line(entry: dict[str, float], learner: training.Learner) -> str:
    metric = learner.task.metric
    angle = "" if math.isnan(entry["angle"]) else f"  angle {entry['angle']:.1f}°"
    train = entry[f"train_{metric}"]
    return (
        f"epoch {entry['epoch']}/{learner.config.epochs}  loss {entry['train_loss']:.3f}"
        + ("" if math.isnan(train) else f"  train {train:.1%}")
        + f"  val {entry[f'val_{metric}']:.1%}{angle}  {entry['seconds']:.1f} s"
    )


def write_model(path: Path, network: backbones.Network) -> None:
    """The chosen weights under the backbone's plain names, for anyone to load, and the feedback apart."""
    state = {name: _contiguous(value) for name, value in network.backbone.state_dict().items()}
    plain = rules.plain_state_dict(network.backbone)
    feedback = {name: value for name, value in state.items() if name not in plain}
    content = {
        "state_dict": {name: state[name] for name in plain},
        "feedback": feedback,
        "settled": {key: str(value) for key, value in network.settled.items()},
    }
    file = io.BytesIO()
    torch.save(content, file)
    write_bytes(path, file.getbuffer())


def _contiguous(value: Any) -> Any:
    return value.detach().cpu().contiguous() if isinstance(value, torch.Tensor) else value


def write_history(directory: Path, progress: training.Progress) -> None:
    """``history.csv``, a line per epoch, and ``alignment.csv``, a line per epoch and layer."""
    for name, entries in (("history", progress.history), ("alignment", progress.alignment)):
        if entries:
            text = io.StringIO()
            writer = csv.DictWriter(text, fieldnames=list(entries[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(entries)
            write_text(directory / f"{name}.csv", text.getvalue())
