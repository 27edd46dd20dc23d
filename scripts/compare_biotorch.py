"""Compare sstune's rules with BioTorch's (PyPI package biotorch 0.0.16) in one process.

    python scripts/compare_biotorch.py                             # gradients and cases: a minute
    python scripts/compare_biotorch.py step --rounds 15 --out results/bench

``gradients``: both sides convert the same CIFAR ResNet-20 and use the same V; the largest relative difference
of a gradient, over all parameters and the input. ``cases``: what a layer must be able to do; "passes" means
that the output is the plain layer's and the gradients are those of autograd through W and V. ``step``: time
of a training step as a ratio to bp, all networks taking turns as in bench.py.

BioTorch gets a virtual environment of its own, made on first use: several GB with the torch that the calling
interpreter has. Exit status 1: gradients differ, or one of our cases fails.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import bench
import pandas as pd
import torch
from biotorch_cases import SIDES, compare_cases, gap, ours, theirs
from biotorch_venv import BIOTORCH, ROOT, environment
from torch import Tensor, nn

from sstune import rules
from sstune.backbones.cifar_resnet import CifarResNet
from sstune.rules.feedback import constant_scale
from sstune.schema import Scale
from sstune.storage import write_text

RULES = ["usf", "frsf", "brsf", "fa"]
TOLERANCE = 1e-6


def gradient_gap(rule: str, dtype: torch.dtype) -> float:
    """Largest gap between the sides' gradients, each parameter's and the input's, under the same V."""
    torch.manual_seed(0)
    plain = CifarResNet(3, 3, 10).to(dtype)
    images = torch.rand(16, 3, 32, 32, dtype=dtype, requires_grad=True)
    labels = torch.randint(0, 10, (16,))
    names = [name for name, _ in plain.named_parameters()]

    def gradients(network: nn.Module, prefix: str) -> list[Tensor]:
        loss = nn.functional.cross_entropy(network(images), labels)
        inputs = [network.get_parameter(prefix + name) for name in names]
        return list(torch.autograd.grad(loss, [images, *inputs]))

    their_network = theirs(copy.deepcopy(plain), rule).to(dtype)
    expected = gradients(their_network, "module.")
    our_network = ours(copy.deepcopy(plain), rule)
    for name, layer in rules.feedback_layers(our_network).items():
        matrix = their_network.get_parameter(f"module.{name}.weight_backward")  # brsf: V of the forward above
        scale = constant_scale(matrix.shape, Scale.xavier, 0)
        for drawn in layer.feedback.buffers():  # usf draws nothing
            drawn.copy_((matrix if rule == "fa" else matrix.abs()) / scale)
    found = gradients(our_network, "")
    gaps = [gap(one, two) for one, two in zip(found, expected, strict=True)]
    return float(torch.tensor(gaps, dtype=torch.float64).max())  # NaN if any is


def compare_gradients(arguments: argparse.Namespace) -> tuple[pd.DataFrame, bool]:
    """One line per rule. Judged in float64: in float32 two right answers differ by their rounding."""
    precisions = {"float32": torch.float32, "float64": torch.float64}
    gaps = {name: [gradient_gap(rule, dtype) for rule in RULES] for name, dtype in precisions.items()}
    return pd.DataFrame({"rule": RULES, **gaps}), all(each <= TOLERANCE for each in gaps["float64"])


def compare_step(arguments: argparse.Namespace) -> tuple[pd.DataFrame, bool]:
    """One line per rule and side: median over rounds of the ratio to bp of the same round, and quartiles."""
    settings = argparse.Namespace(
        backbone=arguments.backbone, image_size=32, compile=False, precision="float32"
    )
    images = torch.rand(arguments.batch_size, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (arguments.batch_size,))

    def contender(rule: str, side: str) -> bench.Contender:
        made = bench.Contender(
            f"{rule} scale=xavier" if side == "ours" else "bp", settings, torch.device("cpu")
        )
        if side == "biotorch" and rule != "bp":
            converted = theirs(made.network.backbone, rule).to(memory_format=torch.channels_last)
            if rule == "dfa":  # asks for the targets in its forward, and differentiates the loss there
                loss = nn.functional.cross_entropy
                converted.forward = partial(converted.forward, targets=labels, loss_function=loss)
            made.network.backbone = converted
        return made

    contenders = {("bp", ""): contender("bp", "biotorch")}
    for rule in [*RULES, "dfa"]:
        contenders |= {(rule, side): contender(rule, side) for side in SIDES}
    seconds = bench.take_turns(contenders, images, labels, arguments.rounds, warmup=2)
    lines = [
        {
            "rule": rule,
            "side": side,
            **bench.ratio(own, seconds["bp", ""]),
            "backbone": arguments.backbone,
            "batch_size": arguments.batch_size,
            "rounds": arguments.rounds,
            "threads": torch.get_num_threads(),
        }
        for (rule, side), own in seconds.items()
    ]
    return pd.DataFrame(lines), True


COMPARISONS: dict[str, Callable[[argparse.Namespace], tuple[pd.DataFrame, bool]]] = {
    "gradients": compare_gradients,
    "cases": lambda arguments: compare_cases(),
    "step": compare_step,
}


def show(frame: pd.DataFrame) -> None:
    """Print ``frame`` with left-aligned columns."""
    columns = [
        [str(name), *(f"{value:.3g}" if isinstance(value, float) else str(value) for value in frame[name])]
        for name in frame
    ]
    widths = [max(map(len, column)) for column in columns]
    for line in zip(*columns, strict=True):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def main() -> int:
    """Parse the command line; run in the environment, or compare if this is the environment."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=list(COMPARISONS), help="default: gradients, then cases")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv-biotorch", help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="folder for biotorch-gradients.csv and so on")
    parser.add_argument("--backbone", default="resnet18", help="of step (default: %(default)s, CIFAR stem)")
    parser.add_argument("--batch-size", type=int, default=64, help="of step (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="of step, 2 or more (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error("--rounds: at least 2")
    if Path(sys.prefix).resolve() != arguments.venv.resolve():
        python = environment(arguments.venv.resolve())
        return subprocess.run([python, __file__, *sys.argv[1:]], check=False).returncode
    warnings.filterwarnings("ignore", message=".*non-full backward hook.*")  # BioTorch's dfa
    print(f"{BIOTORCH}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    torch.set_flush_denormal(arguments.what == "step")  # see bench.py
    succeeded = True
    for what in [arguments.what] if arguments.what else ["gradients", "cases"]:
        frame, right = COMPARISONS[what](arguments)
        succeeded &= right
        print(f"\n{what}")
        show(frame)
        if arguments.out is not None:
            arguments.out.mkdir(parents=True, exist_ok=True)
            frame = frame.assign(biotorch_version=version("biotorch"), torch=torch.__version__)
            write_text(arguments.out / f"biotorch-{what}.csv", frame.to_csv(index=False, lineterminator="\n"))
    return 0 if succeeded else 1


if __name__ == "__main__":
    sys.exit(main())
