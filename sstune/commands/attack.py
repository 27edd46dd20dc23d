"""``sstune attack``: the same network, attacked through the rule's gradient and through the exact one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sstune import attacks, backbones, datasets, rules, tasks
from sstune.commands.execution import once
from sstune.commands.finetune import finetune
from sstune.commands.source import Source, default_parent, descend
from sstune.commands.train import measurement
from sstune.interrupt import StopFlag
from sstune.runs import Run, atomic_write
from sstune.schema import RequestError, RunConfig
from sstune.validation import parse_eps

# Every run attacks the same test images, whatever its seed, so that rules and seeds are paired.
SAMPLE_SEED = 0


def attack(config: RunConfig, asked: set[str]) -> Run:
    """Attack the network of ``init_from``, or of ``sstune finetune``'s run of the same configuration.

    A run's backbone, dataset, task, rule and seed are kept unless the command line asks for others; with
    ``rule=`` the same weights get that rule's feedback, freshly drawn.

    Raises:
        RequestError: training settings are asked for beside ``init_from``.
    """
    parent = finetune(default_parent(config), asked, wait=True) if config.init_from is None else None
    run, source = descend(config, asked, parent)
    once(run, lambda run, device, stop: measure(run, source, device, stop))
    return run


def measure(run: Run, source: Source, device: torch.device, stop: StopFlag) -> dict[str, Any]:
    """Robust accuracy at each eps through each gradient; per-sample outcomes go to ``outcomes.npz``."""
    config = run.config
    data = datasets.load(config.dataset, backbones.preprocessing(config.backbone), config.workers)
    for note in data.notes:
        print(f"  {note}", flush=True)
    task = tasks.build(config.task, data.n_classes)
    network = backbones.build(
        source.settled(config.backbone),
        data.shape,
        task.outputs,
        config.dataset.mean,
        config.dataset.std,
        weights=False,
    )
    replaced = source.load_weights(network)
    if replaced:  # fine to train from, but there is nothing to attack in an untrained head
        raise RequestError(f"init_from: {source.path} has no head for {config.dataset.label}: {replaced[0]}")
    example = network.prepare(torch.zeros(2, *data.shape))
    rules.convert(network.backbone, config.rule, config.seed, network.aliases, example)
    if source.config is not None and source.config.rule == config.rule:
        source.load_feedback(network)
    network.to(device).to(memory_format=torch.channels_last).eval()

    test, samples = data.test.sample(config.attack.n, SAMPLE_SEED)
    clean = tasks.evaluate(network, task, test, device).correct
    method = attacks.ATTACKS[config.attack.name](config.attack, config.seed)
    outcomes = Outcomes(run.directory / "outcomes.npz", samples, clean)
    print(f"  clean {int(clean.sum())}/{len(test)} right", flush=True)
    for gradient in config.attack.gradient:
        attacks.check_zero_eps(network, method, test, samples, clean, gradient, device)
        for eps in config.attack.eps:
            key = f"{gradient} {eps}"
            if key not in outcomes:
                began = time.perf_counter()
                right = attacks.robust(
                    network,
                    method,
                    test,
                    samples,
                    clean,
                    parse_eps(eps),
                    gradient,
                    config.attack.batch_size,
                    device,
                )
                outcomes.add(key, right, time.perf_counter() - began)
            print(f"  {config.attack.name} {key}: {outcomes.correct(key)}/{len(test)} right", flush=True)
            if stop:
                raise stop.stop()
    measured = [
        measurement(
            "test",
            len(test),
            outcomes.correct(f"{gradient} {eps}"),
            attack=config.attack.name,
            gradient=str(gradient),
            eps=eps,
            seconds=outcomes.seconds(f"{gradient} {eps}"),
        )
        for gradient in config.attack.gradient
        for eps in config.attack.eps
    ]
    return {
        "n_classes": data.n_classes,
        "measurements": [measurement("test", len(test), int(clean.sum())), *measured],
        "seconds": sum(entry["seconds"] for entry in measured),
        "precision": "float32",
        "datasets": {"test": {"n": len(data.test), "digest": data.test.digest, "attacked": test.digest}},
        "skipped": data.skipped_summary,
    }


class Outcomes:
    """Which samples stayed right, by ``"gradient eps"``; saved after every addition, so a rerun goes on.

    In the file: ``samples``, indices in the test split; ``clean`` and one array per key, (n,) bool; and
    ``seconds KEY``.
    """

    def __init__(self, path: Path, samples: torch.Tensor, clean: torch.Tensor) -> None:
        self.path = path
        self.arrays: dict[str, Any] = {"samples": samples.numpy(), "clean": clean.numpy()}
        if path.exists():
            with np.load(path) as saved:
                if np.array_equal(saved["samples"], samples) and np.array_equal(saved["clean"], clean):
                    self.arrays = dict(saved)

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def add(self, key: str, right: torch.Tensor, seconds: float) -> None:
        self.arrays[key] = right.numpy()
        self.arrays[f"seconds {key}"] = np.float64(seconds)
        with atomic_write(self.path) as temporary:
            np.savez_compressed(temporary, **self.arrays)

    def correct(self, key: str) -> int:
        return int(self.arrays[key].sum())

    def seconds(self, key: str) -> float:
        return float(self.arrays[f"seconds {key}"])
