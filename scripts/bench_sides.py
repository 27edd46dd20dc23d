"""Four training loops: sstune's engine, a plain loop, a tuned loop, and BioTorch's trainer."""

from __future__ import annotations

import argparse
import contextlib
import io
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from biotorch_cases import theirs
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from sstune import backbones, datasets, rules, tasks, training
from sstune.arithmetic import training_arithmetic
from sstune.composition import compose
from sstune.datasets import Split, Splits
from sstune.schema import RunConfig
from sstune.training.forward import autocast


class Turns(ABC):
    """Training on one side, in turns of a few steps; ``data_seconds``: time spent waiting for batches."""

    def __init__(self, config: RunConfig, network: backbones.Network, device: torch.device) -> None:
        self.config = config
        self.network = network
        self.device = device
        self.data_seconds = 0.0

    @abstractmethod
    def train(self, steps: int) -> None:
        """Train for ``steps`` steps, across epochs."""

    def seconds(self, steps: int) -> float:
        self._wait()
        began = time.perf_counter()
        self.train(steps)
        self._wait()
        return time.perf_counter() - began

    def waited(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield the batches; add the time of waiting for them to ``data_seconds``."""
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
        augmentation = datasets.Augmentation.of(config.dataset)
        self.loader = datasets.Loader(split, config.batch_size, device, config.seed, augmentation)
        optimizer = training.build_optimizer(config.optimizer, network, task)
        learner = training.Learner(config, network, task, optimizer, device)
        self.step = training.Step(learner, config.batch_size)
        network.train()
        self.batches = self.waited(self._forever())

    def _forever(self) -> Iterator[datasets.Batch]:
        epoch = 0
        while True:
            for batch in self.loader.epoch(epoch):
                if len(batch) == self.config.batch_size:
                    yield batch
            epoch += 1

    def train(self, steps: int) -> None:
        for _ in range(steps):
            batch = next(self.batches)
            self.step(batch, len(batch))


class InMemory(Dataset[tuple[Tensor, int]]):
    """Decoded images, put through torchvision's transforms one at a time, as its CIFAR10 does."""

    def __init__(self, split: Split, config: RunConfig) -> None:
        assert isinstance(split.images, Tensor)
        self.images = split.images.permute(0, 2, 3, 1).numpy()
        self.targets = split.targets.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(split.images.shape[-1], padding=config.dataset.crop_padding),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(config.dataset.mean, config.dataset.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.targets[index]


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


class Tuned(Plain):
    """The loop of somebody who wants speed, such as timm's script with its switches on: autocast in
    ``config.precision``, torch.compile, channels_last, a fused optimiser, copies beside the computation."""

    def __init__(self, config: RunConfig, network: backbones.Network, *args: Any) -> None:
        super().__init__(config, network.to(memory_format=torch.channels_last), *args)
        mode = config.compile
        self.forward = self.model if mode is None else torch.compile(self.model, mode=mode.value)
        self.autocast = autocast(config.precision, self.device)
        for group in self.optimizer.param_groups:
            group["fused"] = True

    def train(self, steps: int) -> None:
        self.model.train()
        for _ in range(steps):
            images, labels = next(self.batches)
            images = images.to(self.device, non_blocking=True, memory_format=torch.channels_last)
            labels = labels.to(self.device, non_blocking=True)
            rules.begin_step(self.model)
            torch.compiler.cudagraph_mark_step_begin()
            with training_arithmetic(self.config.precision, benchmark=True):
                with self.autocast:
                    loss = nn.functional.cross_entropy(self.forward(images), labels)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()


class BioTorch(Plain):
    """BioTorch's own loop on the network that BioTorch's converter makes."""

    def train(self, steps: int) -> None:
        from biotorch.training.functions import train  # type: ignore[import-not-found]

        mode = "backpropagation" if self.config.rule.name == "bp" else self.config.rule.name
        some = [next(self.batches)]  # the first batch is read before its loop starts

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
    """``name`` (plain, tuned, ours, biotorch) with its own network under ``rule``."""
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
            *(fast if name in ("tuned", "ours") else []),
        ],
    )
    torch.manual_seed(0)
    network = backbones.build(config.backbone, data.shape, 10, config.dataset.mean, config.dataset.std)
    if name == "biotorch" and rule != "bp":
        network.backbone = theirs(network.backbone, rule)
    elif name != "biotorch":
        rules.convert(network.backbone, config.rule, 0, network.aliases, torch.zeros(2, *data.shape))
    network.to(device)
    if name == "ours":
        return Ours(config, network, device, data.train)
    loops = {"plain": Plain, "tuned": Tuned, "biotorch": BioTorch}
    return loops[name](config, network, device, data.train, workers)
