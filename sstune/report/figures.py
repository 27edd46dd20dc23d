"""Accuracy against eps, both gradients in one panel: the gap between them is what an attack does not see."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import matplotlib.style
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sstune.report.looks import (
    CHANCE,
    STYLE,
    Looks,
    each_network,
    legend_beside,
    looks_of,
    named,
    save,
    style_of,
)
from sstune.report.measurements import GRADIENTS, LINE, RULES, attack_rank, rank
from sstune.report.rows import Row
from sstune.report.tables import lines


def accuracy_against_eps(rows: Iterable[Row], stem: str | Path) -> list[Path]:
    """Draw ``stem.png`` and ``stem.svg``; returns what was written, nothing if the rows hold no attack.

    One figure for each (dataset, backbone), named ``stem-<dataset>-<backbone>`` if there are several. Panels:
    a column for each attack that follows a gradient, a row for each scale; a rule without a scale (bp) stands
    in every row, and what needs no gradient (a black box, noise, an audit's worst case) in every column.
    """
    rows = list(rows)
    chance = {row["config"]["dataset"]["label"]: 1 / row["n_classes"] for row in rows}
    cells = lines(rows)
    cells = cells[cells.groupby(["dataset", "backbone"])["eps_value"].transform("count") > 0]
    written = []
    for group, dataset, backbone, name in each_network(cells, stem):
        with matplotlib.style.context(STYLE):
            written += save(_figure(group, f"{backbone}, {dataset}", chance[dataset]), name)
    return written


def _figure(cells: pd.DataFrame, title: str, chance: float) -> Figure:
    attacks = _columns(cells)
    scales = sorted(set(cells["scale"]) - {""}) or [""]
    figure = Figure(figsize=(3.4 * len(attacks) + 0.4, 2.7 * len(scales) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(scales), len(attacks), sharex="col", sharey=True, squeeze=False)
    looks = looks_of(zip(cells["rule"], cells["variant"], strict=True))
    for (row, scale), (column, attack) in itertools.product(enumerate(scales), enumerate(attacks)):
        axes = panels[row, column]
        axes.axhline(100 * chance, **CHANCE)
        axes.set_title(f"{attack}, scale {scale}" if scale else attack)
        _panel(axes, _shown(cells[cells["scale"].isin(["", scale])], attack), looks, _unit(attack))
    for axes, attack in zip(panels[-1], attacks, strict=True):
        axes.set_xlabel("eps · 255" if _unit(attack) > 1 else "eps (L2)")
        eps = sorted({0.0, *(_unit(attack) * _shown(cells, attack)["eps_value"].dropna())})
        if len(eps) <= 8:
            axes.set_xticks(eps, [f"{value:.3g}" for value in eps])
    for axes in panels[:, 0]:
        axes.set_ylabel("accuracy (%)")
    panels[0, 0].set_ylim(0, 100)
    figure.suptitle(title)
    legend_beside(figure, _legend(cells, looks, chance))
    return figure


def _columns(cells: pd.DataFrame) -> list[str]:
    """The attacks that get a column: those that follow a gradient, or, in a norm that has none, all."""
    attacks = sorted(set(cells["attack"]) - {"clean"}, key=attack_rank)
    climbing = set(cells.loc[cells["gradient"] != "", "attack"])
    norms = {_norm(attack) for attack in climbing}
    return [attack for attack in attacks if attack in climbing or _norm(attack) not in norms]


def _norm(attack: str) -> str:
    return attack.partition(" ")[2]


def _unit(attack: str) -> int:
    """What eps is multiplied by on the axis: grey levels in Linf."""
    return 1 if _norm(attack) else 255


def _shown(cells: pd.DataFrame, column: str) -> pd.DataFrame:
    """What a column shows: the clean accuracy, its attack, and what in the same norm needs no gradient."""
    same_norm = cells["attack"].map(_norm) == _norm(column)
    return cells[cells["attack"].isin(["clean", column]) | (same_norm & (cells["gradient"] == ""))]


def _panel(axes: Axes, cells: pd.DataFrame, looks: Looks, unit: int) -> None:
    """One attack at one scale: a curve for each line and gradient, from the clean accuracy on."""
    for _, line in cells.groupby(LINE, sort=False):
        look = looks[line["rule"].iloc[0], line["variant"].iloc[0]]
        clean = line[line["attack"] == "clean"]
        # exact before rule: where both coincide, as they do for bp, the dashes of rule lie on top
        for attack, gradient in reversed(_series(line)):
            curve = line[(line["attack"] == attack) & (line["gradient"] == gradient)]
            curve = _from_clean(_strongest(curve), clean)
            x, mean, std = unit * curve["eps_value"], 100 * curve["mean"], 100 * curve["std"].fillna(0)
            axes.plot(x, mean, linestyle=style_of(attack, gradient), clip_on=False, **look.drawn())
            if (curve["seeds"] > 1).any():
                axes.fill_between(x, mean - std, mean + std, color=look.colour, alpha=0.15, linewidth=0)


def _series(cells: pd.DataFrame) -> list[tuple[str, str]]:
    """(attack, gradient) of what is not clean, in order."""
    attacked = cells[cells["attack"] != "clean"]
    found = set(zip(attacked["attack"], attacked["gradient"], strict=True))
    return sorted(found, key=lambda pair: (attack_rank(pair[0]), rank(pair[1], GRADIENTS)))


def _strongest(curve: pd.DataFrame) -> pd.DataFrame:
    """At each eps the surrogate that leaves least; other gradients have one source only."""
    return curve.sort_values("mean", kind="stable").drop_duplicates("eps").sort_values("eps_value")


def _from_clean(curve: pd.DataFrame, clean: pd.DataFrame) -> pd.DataFrame:
    """The curve with the clean accuracy at eps 0: that of the attacked samples if known, else of the most."""
    same = clean[clean["n"].isin(curve["n"])]
    start = (clean if same.empty else same).tail(1)
    return pd.concat([start.assign(eps_value=0.0), curve[curve["eps_value"] > 0]])


def _legend(cells: pd.DataFrame, looks: Looks, chance: float) -> list[Line2D]:
    attacked = cells[cells["attack"] != "clean"]
    drawn = set(zip(attacked["rule"], attacked["variant"], strict=True))
    handles = [
        Line2D([], [], label=named(rule, variant), **looks[rule, variant].drawn())
        for rule, variant in sorted(drawn, key=lambda pair: (rank(pair[0], RULES), pair[1]))
    ]
    series = sorted(_series(cells), key=lambda pair: rank(pair[1], GRADIENTS))
    styles = {_label(attack, gradient): style_of(attack, gradient) for attack, gradient in series}
    handles += [Line2D([], [], color="0.4", linestyle=style, label=label) for label, style in styles.items()]
    return [*handles, Line2D([], [], **CHANCE, label=f"chance ({100 * chance:.3g} %)")]


def _label(attack: str, gradient: str) -> str:
    """A line style in the legend."""
    if gradient:
        return "strongest surrogate" if gradient == "surrogate" else f"{gradient} gradient"
    name = attack.partition(" ")[0]
    return "worst case of an audit" if name == "audit" else f"{name}, no gradient"
