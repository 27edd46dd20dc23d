"""Training throughput of sstune's engine, compared with a plain loop, a tuned loop and BioTorch's trainer.

See bench.py train. Each side trains its own copy of one network (:mod:`bench_sides`): ours by
:class:`sstune.training.Trainer`'s own step and loader; the plain loop in eager float32 from a DataLoader
with worker processes, over images held in memory and put through torchvision's transforms; the tuned loop
from such a DataLoader in ours' precision, compiled, in channels_last; BioTorch 0.0.16 by its ``train``
function. All take turns of a few steps within a round, data included. ``speedup`` is over the plain loop
and ``over_tuned`` over the tuned one, as median and quartiles of the ratios within a round.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from functools import partial

import pandas as pd
import torch
from allocation import peak_bytes
from bench_sides import Turns, side
from torch.utils.flop_counter import FlopCounterMode

from sstune import datasets, training
from sstune.arithmetic import training_arithmetic
from sstune.commands.run_once import prepare
from sstune.composition import compose
from sstune.schema import Precision

MIB = 2**20


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


def speedup(name: str, others: list[float], own: list[float]) -> dict[str, float]:
    """How many times as fast as another side: median and quartiles over the rounds."""
    ratios = [other / each for other, each in zip(others, own, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    found = {name: statistics.median(ratios), f"{name}_q1": low, f"{name}_q3": high}
    return {key: round(value, 2) for key, value in found.items()}


Key = tuple[str, str]  # rule and side


def take_turns(
    sides: dict[Key, Turns], arguments: argparse.Namespace
) -> tuple[dict[Key, list[float]], dict[Key, list[float]]]:
    """Seconds of each round, and the loader's share; each round starts with another side."""
    seconds: dict[Key, list[float]] = {key: [] for key in sides}
    shares: dict[Key, list[float]] = {key: [] for key in sides}
    keys = list(sides)
    for turn in range(arguments.rounds):
        start = turn % len(keys)
        for key in keys[start:] + keys[:start]:
            sides[key].data_seconds = 0.0
            seconds[key].append(sides[key].seconds(arguments.steps))
            shares[key].append(sides[key].data_seconds / seconds[key][-1])
    return seconds, shares


def matrix_peaks(device: torch.device) -> dict[str, float]:
    """Measured FLOP/s of matrix products in each precision."""
    peaks = {"float32": matrix_peak(device, torch.float32), "bf16": matrix_peak(device, torch.bfloat16)}
    with training_arithmetic(Precision.tf32, benchmark=False):
        peaks["tf32"] = matrix_peak(device, torch.float32)
    return peaks


def measure(arguments: argparse.Namespace) -> pd.DataFrame:
    """One line per side and rule: throughput, its ratio to the plain loop, loader's share, MFU, memory."""
    config = compose("train", [f"device={arguments.device}"])
    device = prepare(config, training.ALONE)
    chosen = compose("train", ["experiment=cifar10_jpeg", f"dataset.root={arguments.data}"]).dataset
    data = datasets.load(chosen)
    workers = torch.get_num_threads() if arguments.workers is None else arguments.workers
    names = ["plain", "tuned", "ours"] + (["biotorch"] if importlib.util.find_spec("biotorch") else [])
    sides = {
        (rule, name): side(name, rule, arguments, data, device, workers)
        for rule in arguments.rules
        for name in names
    }
    flops = step_flops(side("plain", "bp", arguments, data, device, 0), data.shape)
    for turns in sides.values():
        turns.train(arguments.warmup)
    memory = {key: peak_bytes(partial(turns.train, 1), device) for key, turns in sides.items()}
    seconds, shares = take_turns(sides, arguments)
    peaks = matrix_peaks(device)
    lines = []
    for (rule, name), own in seconds.items():
        images = arguments.batch_size * arguments.steps
        fast = name in ("tuned", "ours")
        precision = arguments.precision if fast else "float32"
        rate = images / statistics.median(own)
        lines.append(
            {
                "rule": rule,
                "side": name,
                "images_per_second": round(rate, 1),
                **speedup("speedup", seconds[rule, "plain"], own),
                **speedup("over_tuned", seconds[rule, "tuned"], own),
                "loader_share": round(statistics.median(shares[rule, name]), 4),
                "mfu": round(rate * flops / peaks[precision], 4),
                "peak_gflops": round(peaks[precision] / 1e9),
                "memory_mib": round(memory[rule, name] / MIB, 1),
                "precision": precision,
                "compiled": arguments.compile if fast else "none",
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
