"""Draw the figure of check D16 in docs/robustness.md: derivatives by autograd against differences.

    python scripts/draw_derivatives.py experiment=audit_cifar10_jpeg dataset.root=cifar10.tar.xz \\
        init_from=resnet20-12fca82f.th              # writes docs/derivatives.svg and .png

The network of ``init_from`` is converted to each rule with its weights unchanged. A point is one image in one
random direction; both values are relative to the root mean square of their image's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.style
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from sstune.attacks.audit.derivatives import SMALL, Derivatives, DerivativeTest
from sstune.commands.data import load
from sstune.commands.lineage import derive_run
from sstune.commands.run_once import prepare
from sstune.commands.victim import load_victim, own
from sstune.composition import request
from sstune.report.styles import COLOURS, STYLE, save
from sstune.schema import Gradient
from sstune.training import ALONE

RULES = ("bp", "usf", "fa")
EPS = 0.5 / 255


def derivatives_of(rule: str, overrides: list[str]) -> Derivatives:
    """Over a step near 0, of the margins of 32 images."""
    line = [*overrides, "attack.n=32", f"rule={rule}", *(["rule.scale=weight_rms"] if rule != "bp" else [])]
    run, source = derive_run(request("attack", line), None)
    device = prepare(run.config, ALONE)
    victim = load_victim(run.config, source, load(run, source, first=False), device)
    profile = victim.task.audit
    assert profile is not None
    test = DerivativeTest(victim, own(run.config, victim, Gradient.rule), profile.unsaturated, EPS, seed=0)
    return test.in_float64()(SMALL[torch.float64])


def draw(overrides: list[str]) -> Figure:
    """A panel for each rule."""
    figure = Figure(figsize=(7.6, 2.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(RULES), sharex=True, sharey=True)
    for axes, rule in zip(panels, RULES, strict=True):
        found = derivatives_of(rule, overrides)
        axes.axline((0, 0), slope=1, color="0.8", linewidth=0.8)
        x, y = (relative(values).flatten() for values in (found.autograd, found.differences))
        axes.plot(x, y, ".", markersize=3, color=COLOURS[rule])
        axes.set_title(f"{rule}: correlation {found.correlation.median():.2f}")
        axes.set_xlim(-3, 3)
        axes.set_ylim(-3, 3)
    figure.supxlabel("derivative by autograd")
    figure.supylabel("by differences")
    return figure


def relative(values: Tensor) -> Tensor:
    """(N, K) relative to the root mean square of each line."""
    return values / values.square().mean(1, keepdim=True).sqrt()


def main() -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/derivatives"))
    parser.add_argument("override", nargs="+", help="of the attack's configuration, as on the command line")
    arguments = parser.parse_args()
    with matplotlib.style.context(STYLE):
        print(*save(draw(arguments.override), arguments.out), sep="\n")


if __name__ == "__main__":
    main()
