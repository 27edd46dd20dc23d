"""Cost of learning rules, and speed of training and attacks, as ratios within one process.

    python scripts/bench.py step                              # ResNet-18, CIFAR stem, batch 64, float32
    python scripts/bench.py step --backbone resnet20 --rounds 30 --out results/bench/step.csv
    python scripts/bench.py step --device cuda --batch-size 512 --compile --precision bf16 --warmup 5
    python scripts/bench.py train --data cifar10.tar.xz       # beside a plain loop; see bench_train.py
    python scripts/bench.py train --data cifar10.tar.xz --backbone resnet18 --batch-size 512 --steps 1
    python scripts/bench.py attack --data cifar10.tar.xz --checkpoint resnet20.th   # see bench_attack.py
    python scripts/bench.py retrieval --out results/bench/retrieval.csv             # see bench_retrieval.py
    python scripts/bench.py hashing --out results/bench/hashing.csv                 # see bench_hashing.py

``step``. Time: one training step (redraw, forward, backward, SGD update). All networks take turns within a
round and the order rotates, so a machine that slows down slows all of them; the figure is the median over
rounds of the ratio to bp of the same round. Memory: the most that tensors occupy at once during a step,
beyond what the network, its gradients and its optimiser hold between steps, plus what the rule holds there;
read from the profiler's allocation events, so it is exact and repeatable.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import pandas as pd
import torch
import torch._dynamo.utils
from allocation import peak_bytes
from biotorch_venv import environment
from torch import Tensor, nn

from sstune import backbones, rules, tasks
from sstune.commands.run_once import prepare
from sstune.composition import compose
from sstune.storage import write_text
from sstune.training import ALONE, build_optimizer

MIB = 2**20
Key = TypeVar("Key")

# Every rule, and both scales of those that fine-tuning compares; trained feedback away from V = W, where it
# has something to do.
RULES = [
    "bp",
    "sham",
    "usf scale=xavier",
    "usf",
    "frsf",
    "brsf scale=xavier",
    "brsf",
    "fa",
    "fa_signed",
    "dfa",
    "kp start=random",
    "wm start=random",
    "pfa start=random",
    "pfa start=random closed_form=false",
    "pfa_o start=random",
]


class Contender:
    """A network under one rule, and its training step."""

    def __init__(self, rule: str, arguments: argparse.Namespace, device: torch.device) -> None:
        name, *settings = rule.split()
        overrides = [f"backbone={arguments.backbone}", f"rule={name}"]
        overrides += [f"rule.{setting}" for setting in settings]
        config = compose("train", overrides)
        torch.manual_seed(0)
        shape = (3, arguments.image_size, arguments.image_size)
        network = backbones.build(config.backbone, shape, 10, [0.5], [0.25])
        rules.convert(network.backbone, config.rule, config.seed, network.aliases, torch.zeros(2, *shape))
        self.name = rule
        self.network = network.to(device).to(memory_format=torch.channels_last)
        self.forward = torch.compile(self.network, fullgraph=True) if arguments.compile else self.network
        task = tasks.build(config.task, 10)
        self.optimizer = build_optimizer(config.optimizer, self.network, task)
        self.device = device
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=arguments.precision == "bf16")

    def step(self, images: Tensor, labels: Tensor) -> None:
        rules.begin_step(self.network)
        with self.autocast:
            loss = nn.functional.cross_entropy(self.forward(images), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def seconds(self, images: Tensor, labels: Tensor) -> float:
        self._wait()
        began = time.perf_counter()
        self.step(images, labels)
        self._wait()
        return time.perf_counter() - began

    def peak(self, images: Tensor, labels: Tensor) -> int:
        """Bytes: what the rule holds between steps, and the most that a step allocates on top."""
        return self.held() + peak_bytes(lambda: self.step(images, labels), self.device)

    def held(self) -> int:
        """Bytes of feedback that stay between steps, and of its optimiser's state."""
        layers = rules.feedback_layers(self.network).values()
        kept = [buffer for layer in layers for buffer in layer.feedback.buffers()]
        trained = rules.feedback_parameters(self.network)
        states = [state for each in trained for state in self.optimizer.state[each].values()]
        return sum(each.nbytes for each in [*kept, *trained, *states] if isinstance(each, Tensor))

    def weights(self) -> list[int]:
        """Bytes of each layer's weight."""
        layers = rules.feedback_layers(self.network).values()
        return [layer.weight.nbytes for layer in layers]

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def take_turns(
    contenders: Mapping[Key, Contender], images: Tensor, labels: Tensor, rounds: int, warmup: int
) -> dict[Key, list[float]]:
    """Seconds of each contender's step in each round; the order rotates from round to round."""
    for contender in contenders.values():
        for _ in range(warmup):
            contender.step(images, labels)
    keys = list(contenders)
    seconds: dict[Key, list[float]] = {key: [] for key in keys}
    for turn in range(rounds):
        start = turn % len(keys)
        for key in keys[start:] + keys[:start]:
            seconds[key].append(contenders[key].seconds(images, labels))
    return seconds


def ratio(own: list[float], bp: list[float]) -> dict[str, float]:
    """Median seconds; median and quartiles of the ratio to bp of the same round."""
    ratios = [one / other for one, other in zip(own, bp, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {
        "seconds": round(statistics.median(own), 4),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_q1": round(low, 3),
        "ratio_q3": round(high, 3),
    }


def compiled_graphs() -> int:
    """How many graphs torch.compile has made so far, of all contenders together."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def bench_step(arguments: argparse.Namespace) -> pd.DataFrame:
    """One line per rule: median seconds, median ratio to bp with its quartiles, memory."""
    device = prepare(compose("train", [f"device={arguments.device}"]), ALONE)
    images = torch.rand(arguments.batch_size, 3, arguments.image_size, arguments.image_size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (arguments.batch_size,), device=device)
    names = ["bp", *(rule for rule in arguments.rules if rule != "bp")]
    torch._dynamo.config.recompile_limit *= len(names)  # all contenders are compilations of one forward
    contenders = {name: Contender(name, arguments, device) for name in names}
    take_turns(contenders, images, labels, 0, arguments.warmup)
    graphs = compiled_graphs()
    seconds = take_turns(contenders, images, labels, arguments.rounds, warmup=0)
    recompiled = compiled_graphs() - graphs
    peaks = {name: contender.peak(images, labels) for name, contender in contenders.items()}
    sizes = next(reversed(contenders.values())).weights()
    lines = []
    for name in names:
        lines.append(
            {
                "rule": name,
                **ratio(seconds[name], seconds["bp"]),
                "peak_over_bp_mib": round((peaks[name] - peaks["bp"]) / MIB, 2),
                "weights_mib": round(sum(sizes) / MIB, 2),
                "largest_layer_mib": round(max(sizes, default=0) / MIB, 2),
                "recompiled": recompiled,
                "backbone": arguments.backbone,
                "compiled": arguments.compile,
                "precision": arguments.precision,
                "batch_size": arguments.batch_size,
                "rounds": arguments.rounds,
                "threads": torch.get_num_threads(),
                "device": device.type,
                "torch": torch.__version__,
            }
        )
    return pd.DataFrame(lines)


FIXED = [
    "backbone", "dataset", "compiled", "precision", "batch_size", "rounds", "steps", "threads", "workers",
    "device", "torch", "n", "clean",
]  # fmt: skip


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Cost of rules, engine and ranking, against other code.")
    commands = parser.add_subparsers(required=True)
    step = commands.add_parser("step", help="time and memory of a training step, each rule against bp")
    step.add_argument("--backbone", default="resnet18")
    step.add_argument("--batch-size", type=int, default=64)
    step.add_argument("--image-size", type=int, default=32)
    step.add_argument("--rounds", type=int, default=15)
    step.add_argument("--warmup", type=int, default=2)
    step.add_argument("--precision", choices=["float32", "bf16"], default="float32")
    step.add_argument("--compile", action="store_true", help="torch.compile(fullgraph=True)")
    step.add_argument("--rules", nargs="+", default=RULES, help="RULE, or 'RULE KEY=VALUE ...'")
    step.set_defaults(measure=bench_step)
    train = commands.add_parser("train", help="throughput of training, data included, against a plain loop")
    train.add_argument("--data", required=True, help="archive or folder of cifar10-jpeg")
    train.add_argument("--backbone", default="resnet20")
    train.add_argument("--batch-size", type=int, default=128)
    train.add_argument("--rounds", type=int, default=9)
    train.add_argument("--steps", type=int, default=8, help="of each side in a round")
    train.add_argument("--warmup", type=int, default=2)
    train.add_argument("--precision", choices=["float32", "tf32", "bf16"], default="bf16", help="ours")
    train.add_argument("--compile", default="default", help="ours: none, or a mode (default: default)")
    train.add_argument("--workers", type=int, help="of the plain loop (default: as many as threads)")
    train.add_argument("--rules", nargs="+", default=["bp", "usf"])
    train.add_argument("--venv", type=Path, help="also measure BioTorch, in this virtual environment")
    train.set_defaults(measure=bench_train)
    attack = commands.add_parser("attack", help="PGD at several eps against the plain torchattacks loop")
    attack.add_argument("--data", required=True, help="archive or folder of cifar10-jpeg")
    attack.add_argument("--checkpoint", required=True, type=Path, help="a ResNet-20's weights")
    attack.add_argument("--n", type=int, default=2000, help="test images")
    attack.add_argument("--eps", nargs="+", default=["1/255", "2/255", "4/255", "8/255"], metavar="EPS")
    attack.add_argument("--steps", type=int, default=20)
    attack.add_argument("--share", type=int, default=250, help="images of a turn")
    attack.add_argument("--batch-size", type=int, help="of both sides (default: plain 128, ours what fits)")
    attack.add_argument("--compile", action="store_true", help="ours by torch.compile")
    attack.add_argument("--rules", nargs="+", default=["bp exact", "usf rule"], help="'RULE GRADIENT'")
    attack.set_defaults(measure=bench_attack)
    for command in (step, train, attack):
        command.add_argument("--device", default="auto")
    for command in (step, train, attack, *add_retrieval(commands)):
        command.add_argument("--out", type=Path, help="CSV file")
    asked = parser.parse_args()
    if asked.measure is bench_attack and asked.n <= asked.share:
        attack.error(f"--share {asked.share}: takes two turns or more of the {asked.n} images (--n)")
    return asked


def add_retrieval(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
) -> list[argparse.ArgumentParser]:
    """The options of ``retrieval`` and ``hashing``."""
    retrieval = commands.add_parser("retrieval", help="metrics and ranking by binary codes, against faiss")
    retrieval.add_argument("--queries", type=int, default=1000)
    retrieval.add_argument("--items", type=int, default=59_000)
    retrieval.add_argument("--many", type=int, default=1_000_000, help="items for 100 queries")
    retrieval.add_argument("--bits", type=int, default=48)
    retrieval.add_argument("--rounds", type=int, default=5)
    retrieval.set_defaults(measure=bench_retrieval)
    hashing = commands.add_parser("hashing", help="the network's share of the time of attacks on hashing")
    hashing.add_argument("--queries", type=int, default=128)
    hashing.add_argument("--items", type=int, default=59_000)
    hashing.add_argument("--steps", type=int, default=20)
    hashing.add_argument("--rounds", type=int, default=5)
    hashing.set_defaults(measure=bench_hashing)
    return [retrieval, hashing]


def bench_train(arguments: argparse.Namespace) -> pd.DataFrame:
    """See bench_train.py."""
    from bench_train import measure

    return measure(arguments)


def bench_attack(arguments: argparse.Namespace) -> pd.DataFrame:
    """See bench_attack.py."""
    from bench_attack import measure

    return measure(arguments)


def bench_retrieval(arguments: argparse.Namespace) -> pd.DataFrame:
    """See bench_retrieval.py."""
    from bench_retrieval import measure

    return measure(arguments)


def bench_hashing(arguments: argparse.Namespace) -> pd.DataFrame:
    """See bench_hashing.py."""
    from bench_hashing import measure

    return measure(arguments)


def main() -> int:
    """Measure, print, and write where ``--out`` says."""
    arguments = parse()
    venv = getattr(arguments, "venv", None)
    if venv is not None and Path(sys.prefix).resolve() != venv.resolve():
        return subprocess.run([environment(venv.resolve()), *sys.argv], check=False).returncode
    # Before any thread starts, so that it holds for all threads: otherwise a step would be slower once the
    # network is so confident that its errors are subnormal numbers.
    torch.set_flush_denormal(True)
    frame = arguments.measure(arguments)
    fixed = [name for name in FIXED if name in frame and frame[name].nunique() == 1]
    print(", ".join(f"{name} {frame[name].iloc[0]}" for name in fixed))
    print(frame.drop(columns=fixed).to_string(index=False))
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(arguments.out, frame.to_csv(index=False, lineterminator="\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
