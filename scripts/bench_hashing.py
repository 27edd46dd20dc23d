"""The share of an attack on hashing that the network takes: ``python scripts/bench.py hashing``.

ResNet-20 with 32 bits and random weights, one batch of random images, a database of ``--items`` random codes
of ten classes. ``passes`` are as many forward and backward passes of the network as the attack makes, without
the attack; both take turns. ``network_share`` is the median ratio of their CPU seconds to the attack's,
with its loss, its steps, the ranking of the database and all checks.
"""

from __future__ import annotations

import argparse
import statistics
import time

import pandas as pd
import torch
from torch import Tensor

from sstune import attacks, backbones, tasks
from sstune.composition import compose
from sstune.datasets import Split
from sstune.retrieval import Codes, Labels
from sstune.schema import Gradient
from sstune.tasks.hashing.reference import Reference

NAMES = ("pgd", "mainstay", "hag_sign", "hag", "sdha")
EPS, CLASSES, TRAIN = 4 / 255, 10, 5000
BAR = 0.85


def victim(items: int, queries: int) -> attacks.Victim:
    """An untrained network and its database."""
    draw = torch.Generator().manual_seed(0)
    config = compose("attack", ["task=hashing", "attack=mainstay"])
    task = tasks.build(config.task, CLASSES)
    network = backbones.build(config.backbone, (3, 32, 32), task.outputs, [0.5], [0.25])
    network.eval().to(memory_format=torch.channels_last)
    images = torch.randint(256, (queries, 3, 32, 32), generator=draw, dtype=torch.uint8)
    classes = [torch.randint(CLASSES, (n,), generator=draw) for n in (queries, items, TRAIN)]
    outputs = torch.randn(items, task.outputs, generator=draw)
    train = 2 * torch.randint(2, (TRAIN, task.outputs), generator=draw, dtype=torch.int8) - 1
    reference = Reference(Codes.of(outputs), Labels.of(classes[1]), train, classes[2])
    split, samples = Split(images, classes[0]), torch.arange(queries)
    return attacks.Victim.of(network, task, split, samples, torch.device("cpu"), reference)


def passes(attacked: attacks.Victim, steps: int) -> None:
    """Gradients of an attack of so many steps, and the outputs of the first and the last image twice."""
    assert isinstance(attacked.split.images, Tensor)
    images = attacked.split.images.div(255).to(memory_format=torch.channels_last)
    for _ in range(steps):
        leaf = images.detach().requires_grad_()
        torch.autograd.grad(attacked.network(leaf).sum(), leaf)
    with torch.no_grad():
        for _ in range(3):
            attacked.network(images)


def measure(arguments: argparse.Namespace) -> pd.DataFrame:
    """See the module's docstring."""
    attacked = victim(arguments.items, arguments.queries)
    source = attacks.GradientSource(Gradient.exact, attacked.network)
    lines = []
    for name in NAMES:
        settings = [f"attack={name}", f"attack.steps={arguments.steps}", "task=hashing"]
        attack = attacks.ATTACKS[name](compose("attack", settings).attack, 0)
        whole: list[float] = []
        network: list[float] = []
        for _ in range(arguments.rounds):
            began = time.process_time()
            attacks.run_attack(attacked, attack, source, EPS, arguments.queries)
            whole.append(time.process_time() - began)
            with attacks.gradient_mode(attacked.network, Gradient.exact):
                began = time.process_time()
                passes(attacked, arguments.steps)
                network.append(time.process_time() - began)
        share = statistics.median(part / all_ for part, all_ in zip(network, whole, strict=True))
        lines.append(
            {
                "attack": name,
                "steps": arguments.steps,
                "queries": arguments.queries,
                "items": arguments.items,
                "cpu_seconds": round(statistics.median(whole), 3),
                "passes": round(statistics.median(network), 3),
                "network_share": round(share, 3),
                "bar": BAR,
                "within": share >= BAR,
            }
        )
    frame = pd.DataFrame(lines)
    frame["rounds"], frame["threads"] = arguments.rounds, torch.get_num_threads()
    return frame
