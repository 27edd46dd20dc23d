"""Figures of a metric against eps, with the rule's and the exact gradient in one panel."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import matplotlib.style
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sstune.report.measurements import LINE, by_metric
from sstune.report.order import GRADIENTS, RULES, attack_rank, rank
from sstune.report.styles import (
    CHANCE,
    STYLE,
    LineStyles,
    axis_label,
    each_network,
    file_name,
    legend_beside,
    legend_label,
    line_styles,
    save,
    style_of,
)
from sstune.report.tables import lines


def metric_against_eps(cells: pd.DataFrame, directory: Path) -> list[Path]:
    """Draw ``accuracy.png`` and ``accuracy.svg``, or those of another metric's name, into ``directory``.

    Returns the files written, none for a metric without attacks. One figure for each (dataset, backbone),
    named ``accuracy-<dataset>-<backbone>`` if there are several. Panels: a column for each attack that uses a
    gradient, a row for each scale; a rule without a scale (bp) is in every row, and an attack without a
    gradient (a black box, noise, an audit's worst case) in every column. A horizontal line marks chance level
    if it is known.

    Args:
        cells: :func:`sstune.report.measurements.frame`.
    """
    written = []
    for metric, means in by_metric(lines(cells)):
        attacked = means[means.groupby(["dataset", "backbone"])["eps_value"].transform("count") > 0]
        for group, dataset, backbone, name in each_network(attacked, directory / file_name(metric)):
            with matplotlib.style.context(STYLE):
                written += save(_figure(group, f"{backbone}, {dataset}", axis_label(metric)), name)
    return written


def _figure(cells: pd.DataFrame, title: str, label: str) -> Figure:
    """The figure of one (dataset, backbone); ``label`` is that of the vertical axis."""
    chance = float(cells["chance"].iloc[-1])
    attacks = _columns(cells)
    scales = sorted(set(cells["scale"]) - {""}) or [""]
    figure = Figure(figsize=(3.4 * len(attacks) + 0.4, 2.7 * len(scales) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(scales), len(attacks), sharex="col", sharey=True, squeeze=False)
    styles = line_styles(zip(cells["rule"], cells["variant"], strict=True))
    for (row, scale), (column, attack) in itertools.product(enumerate(scales), enumerate(attacks)):
        axes = panels[row, column]
        if not math.isnan(chance):
            axes.axhline(100 * chance, **CHANCE)
        axes.set_title(f"{attack}, scale {scale}" if scale else attack)
        _panel(axes, _shown(cells[cells["scale"].isin(["", scale])], attack), styles, _unit(attack))
    for axes, attack in zip(panels[-1], attacks, strict=True):
        axes.set_xlabel("eps · 255" if _unit(attack) > 1 else "eps (L2)")
        eps = sorted({0.0, *(_unit(attack) * _shown(cells, attack)["eps_value"].dropna())})
        if len(eps) <= 8:
            axes.set_xticks(eps, [f"{value:.3g}" for value in eps])
    for axes in panels[:, 0]:
        axes.set_ylabel(label)
    panels[0, 0].set_ylim(0, 100)
    figure.suptitle(title)
    legend_beside(figure, _legend(cells, styles, chance))
    return figure


def _columns(cells: pd.DataFrame) -> list[str]:
    """The attacks with a column: those that use a gradient; in a norm without such attacks, all."""
    attacks = sorted(set(cells["attack"]) - {"clean"}, key=attack_rank)
    climbing = set(cells.loc[cells["gradient"] != "", "attack"])
    norms = {_norm(attack) for attack in climbing}
    return [attack for attack in attacks if attack in climbing or _norm(attack) not in norms]


def _norm(attack: str) -> str:
    return attack.partition(" ")[2]


def _unit(attack: str) -> int:
    """Factor of eps on the axis: 255 for Linf (grey levels)."""
    return 1 if _norm(attack) else 255


def _shown(cells: pd.DataFrame, column: str) -> pd.DataFrame:
    """Cells of a column: clean, its attack, and attacks of the same norm without a gradient."""
    same_norm = cells["attack"].map(_norm) == _norm(column)
    return cells[cells["attack"].isin(["clean", column]) | (same_norm & (cells["gradient"] == ""))]


def _panel(axes: Axes, cells: pd.DataFrame, styles: LineStyles, unit: int) -> None:
    """One attack at one scale: a curve for each line and gradient, starting at the clean accuracy."""
    for _, line in cells.groupby(LINE, sort=False):
        style = styles[line["rule"].iloc[0], line["variant"].iloc[0]]
        clean = line[line["attack"] == "clean"]
        # exact before rule, so that the dashes of rule are on top where both coincide (bp)
        for attack, gradient in reversed(_series(line)):
            curve = line[(line["attack"] == attack) & (line["gradient"] == gradient)]
            curve = _from_clean(_strongest(curve), clean)
            x, mean, std = unit * curve["eps_value"], 100 * curve["mean"], 100 * curve["std"].fillna(0)
            axes.plot(x, mean, linestyle=style_of(attack, gradient), clip_on=False, **style.properties())
            if (curve["seeds"] > 1).any():
                axes.fill_between(x, mean - std, mean + std, color=style.colour, alpha=0.15, linewidth=0)


def _series(cells: pd.DataFrame) -> list[tuple[str, str]]:
    """Sorted (attack, gradient) pairs of attacked cells."""
    attacked = cells[cells["attack"] != "clean"]
    found = set(zip(attacked["attack"], attacked["gradient"], strict=True))
    return sorted(found, key=lambda pair: (attack_rank(pair[0]), rank(pair[1], GRADIENTS)))


def _strongest(curve: pd.DataFrame) -> pd.DataFrame:
    """At each eps, the surrogate with the lowest mean; other gradients have one source only."""
    return curve.sort_values("mean", kind="stable").drop_duplicates("eps").sort_values("eps_value")


def _from_clean(curve: pd.DataFrame, clean: pd.DataFrame) -> pd.DataFrame:
    """The curve with the clean accuracy at eps 0: of the attacked samples if known."""
    same = clean[clean["n"].isin(curve["n"])]
    start = (clean if same.empty else same).tail(1)
    return pd.concat([start.assign(eps_value=0.0), curve[curve["eps_value"] > 0]])


def _legend(cells: pd.DataFrame, styles: LineStyles, chance: float) -> list[Line2D]:
    attacked = cells[cells["attack"] != "clean"]
    drawn = set(zip(attacked["rule"], attacked["variant"], strict=True))
    handles = [
        Line2D([], [], label=legend_label(rule, variant), **styles[rule, variant].properties())
        for rule, variant in sorted(drawn, key=lambda pair: (rank(pair[0], RULES), pair[1]))
    ]
    series = sorted(_series(cells), key=lambda pair: rank(pair[1], GRADIENTS))
    dashes = {_label(attack, gradient): style_of(attack, gradient) for attack, gradient in series}
    handles += [Line2D([], [], color="0.4", linestyle=style, label=label) for label, style in dashes.items()]
    if not math.isnan(chance):
        handles.append(Line2D([], [], **CHANCE, label=f"chance ({100 * chance:.3g} %)"))
    return handles


def _label(attack: str, gradient: str) -> str:
    """Legend label of a line style."""
    if gradient:
        return "strongest surrogate" if gradient == "surrogate" else f"{gradient} gradient"
    name = attack.partition(" ")[0]
    return "worst case of an audit" if name == "audit" else f"{name}, no gradient"
