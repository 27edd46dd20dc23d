"""Compare AutoAttack and its four stages with the authors' implementation (PyPI package pyautoattack).

    python scripts/compare_autoattack.py --data cifar10.tar.xz --checkpoint resnet20-12fca82f.th

``autoattack`` must equal a direct call, sample by sample. Each stage alone, whoever provides it, must
leave a robust accuracy within 0.5 points of the reference's same stage from the same seed; it has
every sample that is right without an attack. Both sides run in one process on the same images, through
the exact gradient. A few hours on one CPU core, mostly for Square. parity.json keeps finished lines; the
same command resumes. Exit status 1: a comparison is out of tolerance.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pyautoattack import AutoAttack
from torch import Tensor

from sstune import backbones, datasets
from sstune.attacks import (
    ATTACKS,
    Attack,
    AttackedModel,
    AttackResult,
    GradientSource,
    Victim,
    gradient_mode,
    run_attack,
)
from sstune.commands.lineage import derive_run
from sstune.commands.run_once import prepare
from sstune.commands.victim import load_victim
from sstune.composition import Request, compose
from sstune.datasets import Batch
from sstune.quantities import parse_eps
from sstune.runs import provenance
from sstune.schema import AttackConfig, Compile, Gradient
from sstune.storage import file_digest, write_json, write_text
from sstune.tasks import Objective
from sstune.training import ALONE
from sstune.training.forward import compiled

# Attacks to compare, and their names in the reference.
PARTS = {
    "autoattack": ["apgd-ce", "apgd-t", "fab-t", "square"],
    "apgd": ["apgd-ce"],
    "apgd_t": ["apgd-t"],
    "fab_t": ["fab-t"],
    "square": ["square"],
}
TABLE = [
    "attack", "eps", "n", "clean", "ours", "reference", "difference", "samples", "images", "within",
    "seconds", "reference_seconds",
]  # fmt: skip
BATCH_SIZE = 250
TOLERANCE = 0.5  # points of robust accuracy
Forward = Callable[[Tensor], Tensor]


class Kept(Attack):
    """Wraps an attack and keeps the images that it returns."""

    def __init__(self, attack: Attack, victim: Victim) -> None:
        super().__init__(attack.config, attack.seed)
        self.attack, self.stages, self.loss = attack, attack.stages, attack.loss
        self.images, self.samples = pixels(victim), victim.samples  # ascending

    def __call__(
        self, stage: str, model: AttackedModel, batch: Batch, objective: Objective, eps: float
    ) -> AttackResult:
        attempt = self.attack(stage, model, batch, objective, eps)
        self.images[torch.searchsorted(self.samples, batch.samples)] = attempt.images
        return attempt


def ours(victim: Victim, forward: Forward, name: str, eps: float, seed: int) -> tuple[Tensor, Tensor]:
    """Which samples stay right, (n,) bool, and the images found, (n, C, H, W)."""
    attack = Kept(ATTACKS[name](config_of(name), seed), victim)
    gradient_source = GradientSource(Gradient.exact, victim.network, forward=forward)
    return run_attack(victim, attack, gradient_source, eps, BATCH_SIZE).robust, attack.images


def config_of(name: str) -> AttackConfig:
    """As ``sstune attack`` composes it."""
    return compose("attack", [f"attack={name}"]).attack


def theirs(victim: Victim, forward: Forward, name: str, eps: float, seed: int) -> tuple[Tensor, Tensor]:
    """The same by the reference implementation, which is given only the forward function."""
    reference = AutoAttack(forward, norm="Linf", eps=eps, version="standard", seed=seed)
    reference.attacks_to_run = PARTS[name]
    labels = victim.split.targets
    with gradient_mode(victim.network, Gradient.exact):
        images, predicted = reference.run_standard_evaluation(pixels(victim), labels, batch_size=BATCH_SIZE)
    return predicted == labels, images


def pixels(victim: Victim) -> Tensor:
    """The images under attack, (n, C, H, W) in [0,1]."""
    return torch.cat([each.images for each in datasets.batches(victim.split, BATCH_SIZE, "cpu")]).contiguous()


def timed(side: Callable[..., tuple[Tensor, Tensor]], *arguments: Any) -> tuple[Tensor, Tensor, float]:
    """The result of ``side``, and its seconds."""
    began = time.perf_counter()
    return (*side(*arguments), round(time.perf_counter() - began, 1))


def compare(victim: Victim, forward: Forward, name: str, eps: str, seed: int) -> dict[str, Any]:
    """One line: robust accuracy in %, on both sides; ``images`` is the largest difference of a pixel."""
    right, images, seconds = timed(ours, victim, forward, name, parse_eps(eps), seed)
    reference, found, reference_seconds = timed(theirs, victim, forward, name, parse_eps(eps), seed)
    n, same = len(right), name == "autoattack"
    difference = 100 * (int(right.sum()) - int(reference.sum())) / n
    largest = float((images - found).abs().max())
    return {
        "attack": name,
        "eps": eps,
        "n": n,
        "clean": 100 * int(victim.clean.sum()) / n,
        "ours": 100 * int(right.sum()) / n,
        "reference": 100 * int(reference.sum()) / n,
        "difference": round(difference, 2),
        "samples": int((right != reference).sum()),
        "images": largest if same else None,
        "within": torch.equal(right, reference) and largest == 0 if same else abs(difference) <= TOLERANCE,
        "seconds": seconds,
        "reference_seconds": reference_seconds,
    }


def the_victim(data: Path, checkpoint: Path, n: int) -> Victim:
    """The checkpoint with the ``n`` test images that ``sstune attack`` uses."""
    asked = [f"dataset.root={data}", f"init_from={checkpoint}", f"attack.n={n}", "rule=bp"]
    config = compose("attack", ["experiment=cifar10_jpeg", *asked, "device=cpu"])
    device = prepare(config, ALONE)
    run, source = derive_run(Request(config), None)
    splits = datasets.load(run.config.dataset, backbones.preprocessing(run.config.backbone))
    return load_victim(run.config, source, splits, device)


def finished_lines(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines that an earlier call wrote to ``path``; exits if its settings differ."""
    if not path.exists():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["settings"] != settings:
        sys.exit(f"{path} was made with other settings or versions; move or remove it first")
    lines: list[dict[str, Any]] = found["lines"]
    return lines


def main() -> int:
    """Parse the command line; compute the missing lines and write all lines after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="archive or folder of cifar10-jpeg")
    parser.add_argument("--checkpoint", type=Path, required=True, help="of a CIFAR ResNet-20")
    parser.add_argument("--eps", nargs="+", default=["2/255", "1/255", "0.5/255"])
    parser.add_argument("--attacks", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--n", type=int, default=500, help="test images (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="both sides ask the network compiled: faster")
    parser.add_argument("--out", type=Path, default=Path("results/autoattack"))
    asked = parser.parse_args()
    torch.set_flush_denormal(True)
    code = provenance()
    victim = the_victim(asked.data, asked.checkpoint, asked.n)
    forward: Forward = victim.network
    if asked.compile:
        forward = compiled(victim.network, Compile.default, victim.device, any_batch=True)
    settings = {
        "n": asked.n,
        "seed": asked.seed,
        "batch_size": BATCH_SIZE,
        "gradient": "exact",
        "norm": "Linf",
        "checkpoint": {"file": asked.checkpoint.name, "sha256": file_digest(asked.checkpoint)},
        "samples": victim.split.digest,
        "versions": code["versions"],
    }
    path = asked.out / "parity.json"
    lines = finished_lines(path, settings)
    done = {(line["attack"], line["eps"]) for line in lines}
    for eps in asked.eps:
        for name in asked.attacks:
            if (name, eps) in done:
                continue
            line = compare(victim, forward, name, eps, asked.seed)
            print(json.dumps(line), flush=True)
            how = {"threads": torch.get_num_threads(), "compiled": asked.compile, "git": code["git"]}
            lines.append(line | how)
            lines.sort(key=lambda each: (list(PARTS).index(each["attack"]), parse_eps(each["eps"])))
            asked.out.mkdir(parents=True, exist_ok=True)
            write_json(path, {"settings": settings, "lines": lines})
            table = pd.DataFrame(lines)[TABLE].to_csv(index=False, lineterminator="\n")
            write_text(asked.out / "parity.csv", table)
    return 0 if all(line["within"] for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
