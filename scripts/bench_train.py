"""Training throughput of sstune's engine, a plain PyTorch loop and BioTorch's trainer; see bench.py train.

Each trains on its own copy of one network: ours by :class:`sstune.training.Trainer`'s own step and loader;
the plain loop in eager float32 from a DataLoader with worker processes, over images held in memory and put
through torchvision's transforms; BioTorch 0.0.16 by its ``train`` function, from such a DataLoader too.
All take turns of a few steps within a round, data included.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import partial
from typing import Any

import pandas as pd
import torch
from allocation import peak_bytes
from biotorch_cases import theirs
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from sstune import backbones, datasets, rules, tasks, training
from sstune.arithmetic import training_arithmetic
from sstune.commands.execution import prepare
from sstune.composition import compose
from sstune.datasets import Split, Splits
from sstune.interrupt import StopFlag
from sstune.schema import Precision, RunConfig

MIB = 2**20


class Turns(ABC):
    """One side's training, a few steps at a time; ``data_seconds``: spent waiting for batches."""

    def __init__(self, config: RunConfig, network: backbones.Network, device: torch.device) -> None:
        self.config = config
        self.network = network
        self.device = device
        self.data_seconds = 0.0

    @abstractmethod
    def train(self, steps: int) -> None:
        """Train for so many steps, over epochs' ends."""

    def seconds(self, steps: int) -> float:
        self._wait()
        began = time.perf_counter()
        self.train(steps)
        self._wait()
        return time.perf_counter() - began

    def waited(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The same batches; adds the time until each is there to ``data_seconds``."""
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self.data_seconds += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class Ours(Turns):
    """sstune's loader and optimiser step, as ``sstune train`` runs them."""

    def __init__(
        self, config: RunConfig, network: backbones.Network, device: torch.device, split: Split
    ) -> None:
        super().__init__(config, network, device)
        network.to(memory_format=torch.channels_last)
        task = tasks.build(config.task, 10)
        padding, flip = config.dataset.crop_padding, config.dataset.flip
        self.loader = datasets.Loader(split, config.batch_size, device, config.seed, padding, flip)
        optimizer = training.build_optimizer(config.optimizer, network)
        self.trainer = training.Trainer(
            config, network, task, self.loader, split, optimizer, device, lambda progress: None, StopFlag()
        )
        network.train()
        self.batches = self.waited(self._forever())

    def _forever(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch = 0
        while True:
            for images, labels in self.loader.epoch(epoch):
                if len(labels) == self.config.batch_size:
                    yield images, labels
            epoch += 1

    def train(self, steps: int) -> None:
        for _ in range(steps):
            images, labels = next(self.batches)
            self.trainer.step(images, labels, len(labels))


class InMemory(Dataset[tuple[Tensor, int]]):
    """Decoded images, put through torchvision's transforms one at a time, as its CIFAR10 does."""

    def __init__(self, split: Split, config: RunConfig) -> None:
        assert isinstance(split.images, Tensor)
        self.images = split.images.permute(0, 2, 3, 1).numpy()
        self.labels = split.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(split.images.shape[-1], padding=config.dataset.crop_padding),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(config.dataset.mean, config.dataset.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class Plain(Turns):
    """The loop of a tutorial: eager float32, a DataLoader with workers, one optimiser."""

    def __init__(
        self,
        config: RunConfig,
        network: backbones.Network,
        device: torch.device,
        split: Split,
        workers: int,
    ) -> None:
        super().__init__(config, network, device)
        self.loader = DataLoader(
            InMemory(split, config),
            batch_size=config.batch_size,
            shuffle=True,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
            drop_last=True,
        )
        settings = {key: getattr(config.optimizer, key) for key in ("lr", "momentum", "nesterov")}
        self.model = network.backbone  # its images come normalised
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), **settings, weight_decay=config.optimizer.weight_decay
        )
        self.batches = self.waited(self._forever())

    def _forever(self) -> Iterator[list[Tensor]]:
        while True:
            yield from self.loader

    def train(self, steps: int) -> None:
        self.model.train()
        for _ in range(steps):
            images, labels = next(self.batches)
            images, labels = images.to(self.device), labels.to(self.device)
            rules.begin_step(self.model)
            loss = nn.functional.cross_entropy(self.model(images), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()


class BioTorch(Plain):
    """BioTorch's own loop on the network that BioTorch's converter makes."""

    def train(self, steps: int) -> None:
        from biotorch.training.functions import train  # type: ignore[import-not-found]

        mode = "backpropagation" if self.config.rule.name == "bp" else self.config.rule.name
        some = [next(self.batches)]  # its loop shall find the first batch there, and wait for the others

        class Few:
            def __len__(self) -> int:
                return steps

            def __iter__(inner) -> Iterator[list[Tensor]]:  # noqa: N805
                yield from some
                for _ in range(steps - 1):
                    yield next(self.batches)

        with contextlib.redirect_stdout(io.StringIO()):
            train(
                self.model,
                mode,
                nn.CrossEntropyLoss(),
                self.optimizer,
                Few(),
                self.device,
                epoch=0,
                multi_gpu=False,
            )


def side(
    name: str, rule: str, arguments: argparse.Namespace, data: Splits, device: torch.device, workers: int
) -> Turns:
    """``name`` (ours, plain, biotorch) with its own network under ``rule``."""
    fast = [f"precision={arguments.precision}", "optimizer.fused=true"]
    fast += [f"compile={arguments.compile}"] if arguments.compile != "none" else []
    config = compose(
        "train",
        [
            "experiment=cifar10_jpeg",
            f"dataset.root={arguments.data}",
            "dataset.crop_padding=4",
            f"backbone={arguments.backbone}",
            f"batch_size={arguments.batch_size}",
            f"rule={rule}",
            "rule.scale=xavier",  # the one that BioTorch has, too
            *(fast if name == "ours" else []),
        ],
    )
    torch.manual_seed(0)
    network = backbones.build(config.backbone, data.shape, 10, config.dataset.mean, config.dataset.std)
    network.to(device)
    if name == "biotorch" and rule != "bp":
        network.backbone = theirs(network.backbone, rule).to(device)
    elif name != "biotorch":
        rules.convert(network.backbone, config.rule, 0, network.aliases, torch.zeros(2, *data.shape))
    if name == "ours":
        return Ours(config, network, device, data.train)
    return {"plain": Plain, "biotorch": BioTorch}[name](config, network, device, data.train, workers)


def step_flops(turns: Turns, shape: tuple[int, int, int]) -> int:
    """Floating-point operations of one image's forward and backward pass."""
    images = torch.rand(2, *shape, device=turns.device)
    counter = FlopCounterMode(display=False)
    with counter:
        turns.network(images).sum().backward()
    turns.network.zero_grad()
    return counter.get_total_flops() // 2


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Measured floating-point operations a second of the best of several large matrix products."""
    n = 8192 if device.type == "cuda" else 2048
    one, two = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        product = one @ two
        float(product[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best


def measure(arguments: argparse.Namespace) -> pd.DataFrame:
    """One line per side and rule: throughput, its ratio to the plain loop, loader's share, MFU, memory."""
    config = compose("train", [f"device={arguments.device}"])
    device = prepare(config, training.ALONE)
    chosen = compose("train", ["experiment=cifar10_jpeg", f"dataset.root={arguments.data}"]).dataset
    data = datasets.load(chosen)
    workers = torch.get_num_threads() if arguments.workers is None else arguments.workers
    names = ["plain", "ours"] + (["biotorch"] if importlib.util.find_spec("biotorch") else [])
    sides = {
        (rule, name): side(name, rule, arguments, data, device, workers)
        for rule in arguments.rules
        for name in names
    }
    flops = step_flops(side("plain", "bp", arguments, data, device, 0), data.shape)
    for turns in sides.values():
        turns.train(arguments.warmup)
    memory = {key: peak_bytes(partial(turns.train, 1), device) for key, turns in sides.items()}
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in sides}
    shares: dict[tuple[str, str], list[float]] = {key: [] for key in sides}
    keys = list(sides)
    for turn in range(arguments.rounds):
        start = turn % len(keys)
        for key in keys[start:] + keys[:start]:
            sides[key].data_seconds = 0.0
            seconds[key].append(sides[key].seconds(arguments.steps))
            shares[key].append(sides[key].data_seconds / seconds[key][-1])
    peaks = {
        "float32": matrix_peak(device, torch.float32),
        "bf16": matrix_peak(device, torch.bfloat16),
    }
    with training_arithmetic(Precision.tf32, benchmark=False):
        peaks["tf32"] = matrix_peak(device, torch.float32)
    lines = []
    for (rule, name), own in seconds.items():
        images = arguments.batch_size * arguments.steps
        speedups = [plain / each for plain, each in zip(seconds[rule, "plain"], own, strict=True)]
        low, _, high = statistics.quantiles(speedups, n=4)
        precision = arguments.precision if name == "ours" else "float32"
        rate = images / statistics.median(own)
        lines.append(
            {
                "rule": rule,
                "side": name,
                "images_per_second": round(rate, 1),
                "speedup": round(statistics.median(speedups), 2),
                "speedup_q1": round(low, 2),
                "speedup_q3": round(high, 2),
                "loader_share": round(statistics.median(shares[rule, name]), 4),
                "mfu": round(rate * flops / peaks[precision], 4),
                "peak_gflops": round(peaks[precision] / 1e9),
                "memory_mib": round(memory[rule, name] / MIB, 1),
                "precision": precision,
                "compiled": arguments.compile if name == "ours" else "none",
                "backbone": arguments.backbone,
                "batch_size": arguments.batch_size,
                "dataset": chosen.label,
                "rounds": arguments.rounds,
                "steps": arguments.steps,
                "threads": torch.get_num_threads(),
                "workers": workers,
                "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
                "torch": torch.__version__,
            }
        )
    return pd.DataFrame(lines)
