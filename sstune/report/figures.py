"""Accuracy against eps, both gradients in one panel: the gap between them is what an attack does not see."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib.style
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sstune.report.measurements import ATTACKS, GRADIENTS, LINE, RULES, rank
from sstune.report.rows import Row
from sstune.report.tables import lines
from sstune.runs import atomic_write

# Okabe and Ito's colours, told apart under any colour blindness
COLOURS = {
    "bp": "#000000",
    "sham": "#999999",
    "usf": "#0072B2",
    "frsf": "#E69F00",
    "brsf": "#009E73",
    "fa": "#D55E00",
    "dfa": "#CC79A7",
    "fa_signed": "#F0E442",
    "kp": "#999933",
    "wm": "#882255",
    "pfa": "#56B4E9",
    "pfa_o": "#332288",
}
OTHER_COLOURS = ("#AA4499", "#88CCEE", "#DDCC77")
STYLES: dict[str, Literal["--", "-"]] = {"rule": "--", "exact": "-"}
OTHER_STYLE: Literal["-."] = "-."
MARKERS = "os^Dv*XP"
# the built-in style, not the user's matplotlibrc; a fixed salt, so that an SVG's ids are the same every time
STYLE: list[str | Path | dict[str, Any]] = [
    "default",
    {"svg.hashsalt": "sstune", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False},
]


def accuracy_against_eps(rows: Iterable[Row], stem: str | Path) -> list[Path]:
    """Draw ``stem.png`` and ``stem.svg``; returns what was written, nothing if the rows hold no attack.

    One figure for each (dataset, backbone), named ``stem-<dataset>-<backbone>`` if there are several. Panels:
    a column for each attack, a row for each scale; a rule without a scale (bp) stands in every row.
    """
    rows = list(rows)
    chance = {row["config"]["dataset"]["label"]: 1 / row["n_classes"] for row in rows}
    cells = lines(rows)
    cells = cells[cells.groupby(["dataset", "backbone"])["eps_value"].transform("count") > 0]
    groups = cells.groupby(["dataset", "backbone"], sort=True)
    written = []
    for (dataset, backbone), group in groups:
        suffix = f"-{file_name(dataset)}-{file_name(backbone)}" if len(groups) > 1 else ""
        with matplotlib.style.context(STYLE):
            written += save(_figure(group, f"{backbone}, {dataset}", chance[str(dataset)]), f"{stem}{suffix}")
    return written


def save(figure: Figure, stem: str | Path) -> list[Path]:
    """Write ``stem.png`` and ``stem.svg``, byte for byte the same for the same figure; returns both."""
    written = []
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        path = Path(f"{stem}.{kind}")
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format=kind, dpi=150, bbox_inches="tight", metadata=metadata)
        written.append(path)
    return written


@dataclass(frozen=True)
class _Look:
    """Rules differ in colour, the variants of one rule in marker. Widths fall, so that a curve that coincides
    with an earlier one leaves its rim to be seen."""

    colour: str
    marker: str
    width: float


Looks = dict[tuple[str, str], _Look]


def _figure(cells: pd.DataFrame, title: str, chance: float) -> Figure:
    attacks = sorted(set(cells["attack"]) - {"clean"}, key=lambda name: rank(name, ATTACKS))
    scales = sorted(set(cells["scale"]) - {""}) or [""]
    figure = Figure(figsize=(3.4 * len(attacks) + 0.4, 2.7 * len(scales) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(scales), len(attacks), sharex=True, sharey=True, squeeze=False)
    looks = _looks(cells)
    for (row, scale), (column, attack) in itertools.product(enumerate(scales), enumerate(attacks)):
        axes = panels[row, column]
        axes.axhline(100 * chance, color="0.4", linestyle=":", linewidth=1.2)
        axes.set_title(f"{attack}, scale {scale}" if scale else attack)
        _panel(axes, cells[cells["scale"].isin(["", scale])], attack, looks)
    for axes in panels[-1]:
        axes.set_xlabel("eps · 255")
    for axes in panels[:, 0]:
        axes.set_ylabel("accuracy (%)")
    eps = sorted({0.0, *(255 * cells["eps_value"].dropna())})
    if len(eps) <= 8:
        panels[0, 0].set_xticks(eps, [f"{value:.3g}" for value in eps])
    panels[0, 0].set_ylim(0, 100)
    figure.suptitle(title)
    figure.legend(
        handles=_legend(cells, looks, chance), loc="upper left", bbox_to_anchor=(1, 1), frameon=False
    )
    return figure


def _panel(axes: Axes, cells: pd.DataFrame, attack: str, looks: Looks) -> None:
    """One attack at one scale: a curve for each line and gradient, from the clean accuracy on."""
    for _, line in cells.groupby(LINE, sort=False):
        look = looks[line["rule"].iloc[0], line["variant"].iloc[0]]
        clean = line[line["attack"] == "clean"]
        attacked = line[line["attack"] == attack]
        # exact first: where both coincide, as they do for bp, the dashes of rule lie on top
        for gradient in reversed(_gradients(attacked)):
            curve = _from_clean(attacked[attacked["gradient"] == gradient], clean)
            x, mean, std = 255 * curve["eps_value"], 100 * curve["mean"], 100 * curve["std"].fillna(0)
            style = STYLES.get(gradient, OTHER_STYLE)
            axes.plot(x, mean, linestyle=style, clip_on=False, **_drawn(look))
            if (curve["seeds"] > 1).any():
                axes.fill_between(x, mean - std, mean + std, color=look.colour, alpha=0.15, linewidth=0)


def _from_clean(curve: pd.DataFrame, clean: pd.DataFrame) -> pd.DataFrame:
    """The curve with the clean accuracy at eps 0: that of the attacked samples if known, else of the most."""
    same = clean[clean["n"].isin(curve["n"])]
    start = (clean if same.empty else same).tail(1)
    return pd.concat([start.assign(eps_value=0.0), curve[curve["eps_value"] > 0]])


def colours_of(rules: Iterable[str]) -> dict[str, str]:
    """A colour for each rule: its own, or the next free one."""
    others = [rule for rule in sorted(set(rules)) if rule not in COLOURS]
    return COLOURS | dict(zip(others, itertools.cycle(OTHER_COLOURS), strict=False))


def _looks(cells: pd.DataFrame) -> Looks:
    """The look of each (rule, variant)."""
    rules = sorted(set(cells["rule"]), key=lambda name: rank(name, RULES))
    colours = colours_of(rules)
    looks: Looks = {}
    for later, rule in enumerate(reversed(rules)):
        variants = sorted(set(cells.loc[cells["rule"] == rule, "variant"]))
        for variant, marker in zip(variants, itertools.cycle(MARKERS), strict=False):
            looks[rule, variant] = _Look(colours[rule], marker, 1.2 + 0.5 * later)
    return looks


def _drawn(look: _Look) -> dict[str, Any]:
    return {
        "color": look.colour,
        "marker": look.marker,
        "linewidth": look.width,
        "markersize": 2.8 + look.width,
    }


def _legend(cells: pd.DataFrame, looks: Looks, chance: float) -> list[Line2D]:
    attacked = cells[cells["attack"] != "clean"]
    drawn = set(zip(attacked["rule"], attacked["variant"], strict=True))
    handles = [
        Line2D([], [], label=f"{rule} ({variant})" if variant else rule, **_drawn(looks[rule, variant]))
        for rule, variant in sorted(drawn, key=lambda pair: (rank(pair[0], RULES), pair[1]))
    ]
    for gradient in _gradients(attacked):
        label = f"{gradient} gradient" if gradient else "no gradient"
        handles.append(Line2D([], [], color="0.4", linestyle=STYLES.get(gradient, OTHER_STYLE), label=label))
    return [*handles, Line2D([], [], color="0.4", linestyle=":", label=f"chance ({100 * chance:.3g} %)")]


def _gradients(cells: pd.DataFrame) -> Sequence[str]:
    return sorted(set(cells["gradient"]), key=lambda name: rank(name, GRADIENTS))


def file_name(label: object) -> str:
    """A label as part of a file's name."""
    return re.sub(r"[^\w.-]+", "_", str(label))
