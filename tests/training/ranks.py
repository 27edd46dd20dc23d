"""One of the processes that train together: started here as torchrun would start it, without its agent."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from processes import run_all

from sstune import backbones, datasets, rules, tasks
from sstune.commands import execute
from sstune.composition import Request, compose
from sstune.training import Learner, build_optimizer, init_distributed, synchronise_normalisation
from sstune.training.adversarial import adversary_of
from sstune.training.step import Step
from sstune.validation import validate

CPU = torch.device("cpu")


def together(ranks: int, folder: Path, task: Callable[..., None], *arguments: Any) -> None:
    """Run ``task(*arguments)`` in ``ranks`` processes that form one world, and wait for them."""
    run_all(_as_rank, [(rank, ranks, folder, task, arguments) for rank in range(ranks)])


def _as_rank(
    rank: int, ranks: int, folder: Path, task: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "GLOO_SOCKET_IFNAME": "lo"}
    if ranks > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": (folder / "port").read_text()}
    task(*arguments)


def run_lines(lines: list[list[str]]) -> None:
    """Every line of ``sstune train``."""
    for line in lines:
        config = compose("train", line)
        validate(config)
        execute(Request(config))


def train_in_float64(forms: dict[str, list[str]], steps: int, out: Path) -> None:
    """ResNet-20 on the digits in float64, by the engine's own step and loader; saves the whole state."""
    world = init_distributed()
    for name, overrides in forms.items():
        line = ["dataset.test_fraction=0.8", "dataset.flip=true", "batch_size=50", "optimizer.lr=0.05"]
        config = compose("train", [*line, *overrides])
        torch.manual_seed(0)
        data = datasets.load(config.dataset)
        network = backbones.build(config.backbone, data.shape, 10, [0.3], [0.4]).double()
        rules.convert(network.backbone, config.rule, 0, example=torch.zeros(2, *data.shape).double())
        if world.size > 1:
            assert synchronise_normalisation(network, CPU) == []
        augmentation, shard = datasets.Augmentation(crop_padding=1), datasets.Shard(world.rank, world.size)
        loader = datasets.Loader(data.train, config.batch_size, CPU, 0, augmentation, shard)
        optimizer = build_optimizer(config.optimizer, network)
        task = tasks.build(config.task, 10)
        learner = Learner(config, network, task, optimizer, CPU, world)
        step = Step(learner, config.batch_size // world.size)
        adversary = adversary_of(learner, step.forward.size)
        network.train()
        done = 0
        while done < steps:
            for number, batch in enumerate(loader.epoch(done)):
                total = min(config.batch_size, len(data.train) - number * config.batch_size)
                batch = batch.with_images(batch.images.double())
                if adversary is not None:
                    batch = adversary(batch, (done, number), loader.shard.of(total))
                step(batch, total)
                done += 1
        torch.save(network.state_dict(), out / f"{name}-{world.rank}-of-{world.size}.pt")
