"""How far HAG moves under each backward pass: one network's weights, every rule and scale.

    python scripts/hash_gradients.py RUN_DIR experiment=hashing_cifar10_jpeg dataset.root=cifar10.tar.xz

For each rule the network of a run of task=hashing is converted, with its weights unchanged, and HAG's loss is
differentiated at the clean images with a = 0.1, where an attack begins. Columns: ``mean_abs`` of the
gradient's pixels; ``step_255``, the mean step of gradient descent at HAG's learning rate, in 1/255;
``cosine`` and ``same_sign``, the agreement with the exact gradient, means over images and over pixels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from sstune import attacks
from sstune.attacks.ascent import loss_gradient
from sstune.commands.data import load
from sstune.commands.lineage import derive_run
from sstune.commands.run_once import prepare
from sstune.commands.victim import load_victim
from sstune.composition import request
from sstune.datasets import Batch, batches
from sstune.schema import Gradient, HagConfig
from sstune.storage import write_text
from sstune.tasks import Goal
from sstune.training import ALONE

BACKWARD = [
    ("bp", "weight_rms"),
    *((r, s) for s in ("weight_rms", "xavier") for r in ("usf", "frsf", "brsf")),
]


def gradient(victim: attacks.Victim, batch: Batch, kind: Gradient) -> Tensor:
    """Of HAG's loss with respect to the images, (N, C * H * W) float64."""
    goal = Goal("hag", reference=victim.reference)
    objective = victim.task.objective(batch, goal, lambda: victim.network(batch.images).detach())
    with attacks.gradient_mode(victim.network, kind):
        source = attacks.GradientSource(kind, victim.network)
        return loss_gradient(source.model(), batch.images, objective)[1].flatten(1).double()


def line(run_dir: Path, rule: str, scale: str, n: int, overrides: list[str]) -> dict[str, object]:
    """One backward pass."""
    words = [f"init_from={run_dir}", "attack=hag", f"attack.n={n}", f"rule={rule}", f"rule.scale={scale}"]
    run, source = derive_run(request("attack", [*words, *overrides]), None)
    device = prepare(run.config, ALONE)
    victim = load_victim(run.config, source, load(run, source, first=False), device)
    (batch,) = batches(victim.split, n, device)
    own, exact = gradient(victim, batch, Gradient.rule), gradient(victim, batch, Gradient.exact)
    config = HagConfig("hag", [])
    return {
        "network": run_dir.name,
        "rule": rule,
        "scale": scale if rule != "bp" else "",
        "n": n,
        "mean_abs": f"{float(own.abs().mean()):.3g}",
        "step_255": f"{255 * config.lr * float(own.abs().mean()):.3g}",
        "cosine": round(float(cosine_similarity(own, exact, eps=1e-200).mean()), 3),
        "same_sign": round(float((own.sign() == exact.sign()).double().mean()), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="directory of a run of task=hashing")
    parser.add_argument("overrides", nargs="*", help="further settings, such as dataset.root=FILE")
    parser.add_argument("--n", type=int, default=200, help="test images")
    parser.add_argument("--out", type=Path, help="CSV file")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    rows = [line(arguments.run, *each, arguments.n, arguments.overrides) for each in BACKWARD]
    frame = pd.DataFrame(rows)
    print(frame.to_string(index=False))
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(arguments.out, frame.to_csv(index=False, lineterminator="\n"))


if __name__ == "__main__":
    main()
