"""Draw the figures of docs/rules.md from the rules themselves.

    python scripts/draw_rules.py                   # writes docs/rules-*.svg and .png

``rules-feedback``: entries of V against entries of W of one layer, with the angle between the two.
``rules-update``: cosine of each layer's update with the true gradient, ResNet-20 as initialised, one batch.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import matplotlib.style
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F

from sstune import backbones, rules
from sstune.composition import compose
from sstune.report.styles import COLOURS, STYLE, save

SPECIMENS = [
    "usf",
    "frsf",
    "brsf",
    "fa",
    "fa_signed",
    "kp start=random",
    "wm",
    "pfa",
    "pfa_o start=random",
]
STEPS = 300  # before looking: W moves away from where it was at conversion, and trained feedback follows


def converted(specimen: str, network: nn.Module, example: torch.Tensor) -> nn.Module:
    """``network`` under the rule and settings that ``specimen`` names ("kp start=random")."""
    name, *settings = specimen.split()
    config = compose("train", [f"rule={name}", *(f"rule.{setting}" for setting in settings)])
    rules.convert(network, config.rule, seed=0, example=example)
    return network


def entries(specimen: str) -> tuple[torch.Tensor, torch.Tensor, float]:
    """W, V and their angle for a layer that has learned a random target for ``STEPS`` steps of SGD."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 32))
    target = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 32))
    converted(specimen, network, torch.zeros(2, 64))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5, momentum=0.9, weight_decay=1e-3)
    for _ in range(STEPS):
        rules.begin_step(network)
        x = torch.randn(64, 64)
        loss = F.mse_loss(network(x), target(x).detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    layer = rules.feedback_layers(network)["2"]
    return layer.weight.detach(), layer.feedback.matrix(layer.weight), rules.alignment(network)[1].angle


def draw_feedback() -> Figure:
    """A panel for each rule with a V of W's shape."""
    figure = Figure(figsize=(7.6, 7.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(3, 3, sharex=True, sharey=True).flatten()
    for axes, specimen in zip(panels, SPECIMENS, strict=True):
        weight, feedback, angle = entries(specimen)
        axes.axhline(0, color="0.8", linewidth=0.8)
        axes.axline((0, 0), slope=1, color="0.8", linewidth=0.8)
        axes.plot(
            weight.flatten(),
            feedback.flatten(),
            ".",
            markersize=2,
            color=COLOURS[specimen.split()[0]],
            rasterized=True,
        )
        axes.set_title(f"{specimen}: {angle:.0f}°")
        axes.set_xlim(-0.3, 0.3)
        axes.set_ylim(-0.3, 0.3)
    figure.supxlabel("entry of W")
    figure.supylabel("entry of V")
    return figure


def draw_update() -> Figure:
    """Lines over the layers of a ResNet-20 with He's initialisation, random pixels and labels."""
    figure = Figure(figsize=(7.6, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    torch.manual_seed(0)
    images, labels = torch.rand(128, 3, 32, 32), torch.randint(0, 10, (128,))
    for specimen in ["sham", "pfa", "usf", "brsf", "fa", "dfa"]:
        torch.manual_seed(0)
        config = compose("train", ["backbone=resnet20"])
        network = backbones.build(config.backbone, (3, 32, 32), 10, [0.5], [0.25])
        with torch.no_grad():
            for _ in range(30):  # so that batch normalisation knows its statistics in eval mode
                network(images)
        converted(specimen, network.backbone, images[:2])
        measured = rules.alignment(network, partial(_loss, network, images, labels))
        axes.plot([layer.update_cosine for layer in measured], ".-", label=specimen, color=COLOURS[specimen])
    axes.set_xticks(range(len(measured)), [layer.layer for layer in measured], rotation=90)
    axes.set_ylabel("cosine of update and true gradient")
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def _loss(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(network(images), labels)


def main() -> None:
    """Write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs"))
    out = parser.parse_args().out
    torch.set_num_threads(1)
    with matplotlib.style.context(STYLE):
        for name, draw in (("rules-feedback", draw_feedback), ("rules-update", draw_update)):
            print(*save(draw(), out / name), sep="\n")


if __name__ == "__main__":
    main()
