"""PGD at several eps on one network: sstune compared with a plain torchattacks loop; see bench.py attack.

The plain loop attacks every image at every eps with all steps, as a script around torchattacks does. Ours
attacks correctly classified images, stops at the first success and, as a cascade, does not attack an image
again at a larger eps. Both use the same starting points and take turns on parts of the images; a third turn
without cascade and early exit shows that the outcomes are then equal, sample by sample.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pandas as pd
import torch
import torchattacks
from torch import Tensor, nn

from sstune import attacks, datasets
from sstune.attacks.ascent import Pgd
from sstune.commands.lineage import open_source
from sstune.commands.run_once import prepare
from sstune.commands.victim import load_victim, own
from sstune.composition import compose
from sstune.datasets import Batch
from sstune.quantities import parse_eps
from sstune.schema import Gradient, PgdConfig
from sstune.training import ALONE

BATCH = 128


class Started(Pgd):
    """PGD from given points: ``starts`` holds one of the unit ball for each sample."""

    starts: Tensor

    def start(self, batch: Batch, eps: float, restart: int) -> Tensor:
        noise = self.starts[batch.samples].to(batch.images)
        return (batch.images + eps * noise).clamp(0, 1)


class Plain(torchattacks.PGD):
    """torchattacks.PGD with its random start replaced by ``noise``."""

    noise: Tensor

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        original = torch.Tensor.uniform_
        try:
            torch.Tensor.uniform_ = lambda tensor, low, high: tensor.copy_(high * self.noise)  # type: ignore
            return super().forward(images, labels)
        finally:
            torch.Tensor.uniform_ = original  # type: ignore[method-assign]


@dataclass
class Side:
    """The samples that stay correct at each eps, and the seconds of each turn."""

    name: str
    attack: Callable[[attacks.Victim], list[Tensor]]
    right: list[list[Tensor]]
    seconds: list[float]

    def turn(self, share: attacks.Victim) -> None:
        _wait(share.device)
        began = time.perf_counter()
        self.right.append(self.attack(share))
        _wait(share.device)
        self.seconds.append(time.perf_counter() - began)

    def correct(self) -> Tensor:
        """(eps, samples) bool."""
        return torch.stack([torch.cat(parts) for parts in zip(*self.right, strict=True)])


def measure(arguments: argparse.Namespace) -> pd.DataFrame:
    """A line for each rule, gradient, side and eps: robust accuracy, speed-up over the plain loop."""
    lines: list[dict[str, object]] = []
    for name in arguments.rules:
        rule, gradient = name.split()
        lines += _lines(arguments, rule, Gradient(gradient))
    return pd.DataFrame(lines)


def _lines(arguments: argparse.Namespace, rule: str, gradient: Gradient) -> list[dict[str, object]]:
    config = compose(
        "attack",
        [
            "experiment=cifar10_jpeg",
            f"dataset.root={arguments.data}",
            f"rule={rule}",
            f"attack.n={arguments.n}",
            f"device={arguments.device}",
            *(["compile=default"] if arguments.compile else []),
        ],
    )
    device = prepare(config, ALONE)
    data = datasets.load(config.dataset)
    victim = load_victim(config, open_source(arguments.checkpoint), data, device)
    starts = torch.empty(len(data.test), *data.shape)
    starts.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    sides = _sides(arguments, victim, own(config, victim, gradient), starts)
    shares = [victim.take(index) for index in torch.arange(len(victim.clean)).split(arguments.share)]
    for side in sides:  # warm-up: kernels, compiled graphs
        side.attack(shares[0].some(BATCH))
    for turn, share in enumerate(shares):
        for side in sides[turn % 3 :] + sides[: turn % 3]:
            side.turn(share)
    constant = {
        "n": len(victim.clean),
        "clean": int(victim.clean.sum()),
        "steps": arguments.steps,
        "rounds": len(shares),
        "compiled": arguments.compile,
        "backbone": config.backbone.name,
        "dataset": config.dataset.label,
        "threads": torch.get_num_threads(),
        "device": device.type,
        "torch": torch.__version__,
    }
    names = {"rule": rule, "gradient": str(gradient)}
    compared = _compared(sides, victim.clean, sorted(arguments.eps, key=parse_eps))
    return [names | line | constant for line in compared]


def _sides(
    arguments: argparse.Namespace, victim: attacks.Victim, source: attacks.GradientSource, starts: Tensor
) -> list[Side]:
    """The plain loop, and ours with a cascade and early exit, and without."""
    named = sorted(arguments.eps, key=parse_eps)
    epsilons = [parse_eps(eps) for eps in named]
    step = PgdConfig("pgd", named, steps=arguments.steps, step_size="eps/4", cascade=True)

    def ours(config: PgdConfig) -> Callable[[attacks.Victim], list[Tensor]]:
        method = Started(config, 0)
        method.starts = starts

        def run(share: attacks.Victim) -> list[Tensor]:
            found: list[attacks.Outcome] = []
            for eps in epsilons:
                begin = found[-1].at_larger_eps() if config.cascade and found else None
                size = arguments.batch_size or attacks.largest_batch(share, source)
                found.append(attacks.run_attack(share, method, source, eps, size, begin))
            return [outcome.robust for outcome in found]

        return run

    def plain(share: attacks.Victim) -> list[Tensor]:
        network, gradient = victim.network, source.gradient
        return [_plain_loop(share, network, gradient, starts, eps, arguments) for eps in epsilons]

    return [
        Side("plain", plain, [], []),
        Side("ours", ours(step), [], []),
        Side("ours, all steps", ours(replace(step, cascade=False, early_exit=False)), [], []),
    ]


def _compared(sides: list[Side], clean: Tensor, each_eps: list[str]) -> Iterator[dict[str, object]]:
    """Each side at each eps: correct samples, those that differ from the plain loop's, and speed."""
    reference = sides[0].correct()
    for side in sides:
        ratios = [plain / own for plain, own in zip(sides[0].seconds, side.seconds, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        for number, eps in enumerate(each_eps):
            right = side.correct()[number]
            yield {
                "side": side.name,
                "eps": eps,
                "robust": int((right & clean).sum()),
                "differ": int((right != reference[number])[clean].sum()),
                "above": int((right & ~reference[number] & clean).sum()),
                "seconds": round(sum(side.seconds), 1),
                "speedup": round(statistics.median(ratios), 2),
                "speedup_q1": round(low, 2),
                "speedup_q3": round(high, 2),
            }


def _plain_loop(
    share: attacks.Victim,
    network: nn.Module,
    gradient: Gradient,
    starts: Tensor,
    eps: float,
    arguments: argparse.Namespace,
) -> Tensor:
    """The plain loop: all images, all steps; success is judged at the last iterate."""
    right = []
    pgd = Plain(network, eps=eps, alpha=eps / 4, steps=arguments.steps)
    split = share.split.to(share.device)
    images, labels = split.images, split.targets
    assert isinstance(images, Tensor)
    with attacks.gradient_mode(network, gradient):
        for index in torch.arange(len(split)).split(arguments.batch_size or BATCH):
            x, y = images[index].float() / 255, labels[index]
            pgd.noise = starts[share.samples[index]].to(x)
            adversarial = pgd(x, y)
            with torch.no_grad():
                right.append((network(adversarial).argmax(1) == y).cpu())
    return torch.cat(right)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
