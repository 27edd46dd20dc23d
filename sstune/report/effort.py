"""Figures of a counted metric against gradient steps or queries, which show whether attacks converged."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter

from sstune.report.measurements import LINE, by_metric
from sstune.report.order import GRADIENTS, RULES, attack_rank, rank
from sstune.report.styles import (
    STYLE,
    axis_label,
    each_network,
    legend_beside,
    legend_label,
    line_styles,
    metric_suffix,
    save,
    style_of,
)
from sstune.schema import traits_of

UNITS = {"steps": "gradient steps", "queries": "queries"}

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Accuracy in [0, 1], ``y``, after ``x`` steps or queries, ascending.

    Args:
        row: title of its row of panels.
        column: title of its column of panels (an eps).
        look: matplotlib line properties.
    """

    row: str
    column: str
    x: Floats
    y: Floats
    look: dict[str, Any]


def metric_against_effort(cells: pd.DataFrame, directory: Path) -> list[Path]:
    """Draw ``steps`` and ``queries`` (``.png``, ``.svg``) into ``directory``; nothing without such cells.

    One figure for each (dataset, backbone); panels: a row for each attack and scale, a column for each eps.
    Curves are means over seeds. Transferred attacks, attacks that do not report their effort, and metrics
    that are not counted are omitted.

    Args:
        cells: :func:`sstune.report.measurements.frame`.
    """
    cells = cells[cells["counted"]]
    cells = cells[np.array([_drawn(cell) for cell in cells.to_dict("records")], dtype=bool)]
    telling = cells.loc[cells["found"].map(len) > 0, "attack"].unique()
    cells = cells[cells["attack"].isin(telling)]
    written = []
    for (metric, part), (kind, unit) in itertools.product(by_metric(cells), UNITS.items()):
        chosen = part[part["attack"].map(kind_of) == kind]
        stem = directory / f"{kind}{metric_suffix(metric)}"
        for group, dataset, backbone, name in each_network(chosen, stem):
            with matplotlib.style.context(STYLE):
                figure = effort_figure(list(_curves(group)), unit, axis_label(metric))
                figure.suptitle(f"{backbone}, {dataset}")
                legend_beside(figure, _legend(group))
                written += save(figure, name)
    return written


def kind_of(attack: str) -> str | None:
    """The unit of an attack's effort, a key of :data:`UNITS`; None if it has no effort curve."""
    return traits_of(attack).effort


def accuracy_after(found: Sequence[Sequence[int]], n_clean: int, n: int, efforts: npt.ArrayLike) -> Floats:
    """Accuracy in [0, 1] after each of ``efforts``.

    Args:
        found: ``[effort, samples]`` pairs, numbers of samples broken after an effort.
        n_clean: number of the ``n`` samples that are correct without an attack.
    """
    when, broken = np.asarray(found, dtype=np.int64).reshape(-1, 2).T
    order = np.argsort(when)
    total = np.concatenate([[0], np.cumsum(broken[order])])
    return (n_clean - total[np.searchsorted(when[order], efforts, side="right")]) / n


def complete(found: Sequence[Sequence[int]], n_clean: float, correct: float) -> bool:
    """Whether the effort of every broken sample is known."""
    return sum(samples for _, samples in found) == n_clean - correct


def effort_figure(curves: Sequence[Curve], unit: str, label: str = "accuracy (%)") -> Figure:
    """Panels in the order in which rows and columns first occur; queries on a logarithmic axis."""
    rows = list(dict.fromkeys(curve.row for curve in curves))
    columns = list(dict.fromkeys(curve.column for curve in curves))
    figure = Figure(figsize=(2.3 * len(columns) + 0.8, 1.9 * len(rows) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    logarithmic = unit == UNITS["queries"]
    panels = figure.subplots(
        len(rows), len(columns), sharex="all" if logarithmic else "row", sharey=True, squeeze=False
    )
    first = 1 if logarithmic else 0
    for curve in curves:
        axes = panels[rows.index(curve.row), columns.index(curve.column)]
        axes.step(np.maximum(curve.x, first), 100 * curve.y, where="post", clip_on=False, **curve.look)
    for row, line in zip(rows, panels, strict=True):
        line[0].set_ylabel(f"{row}\n{label}")
        if logarithmic:
            line[0].set_xscale("log")
            line[0].xaxis.set_major_formatter("{x:g}")
            line[0].xaxis.set_minor_formatter(NullFormatter())
        else:
            line[0].xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
        line[0].set_xlim(left=first)
    for eps, axes in zip(columns, panels[0], strict=True):
        axes.set_title(f"eps {eps}")
    for axes in panels[-1]:
        axes.set_xlabel(unit)
    panels[0, 0].set_ylim(0, 100)
    return figure


def _drawn(cell: Any) -> bool:
    """Whether a measurement has a curve."""
    attacked = cell["attack"] != "clean" and kind_of(cell["attack"]) is not None
    counted = attacked and cell["gradient"] != "surrogate"
    return counted and complete(cell["found"], cell["n_clean"], cell["correct"])


def _curves(cells: pd.DataFrame) -> Iterator[Curve]:
    styles = line_styles(zip(cells["rule"], cells["variant"], strict=True))
    scales = sorted(set(cells["scale"]) - {""}) or [""]
    for attack, scale in itertools.product(sorted(set(cells["attack"]), key=attack_rank), scales):
        shown = cells[(cells["attack"] == attack) & cells["scale"].isin(["", scale])]
        # exact before rule, so that the dashes of rule are on top where both coincide
        later = [rank(gradient, GRADIENTS) for gradient in shown["gradient"]]
        shown = shown.assign(later=later).sort_values(["eps_value", "later"], ascending=[True, False])
        for (eps, gradient, *_), seeds in shown.groupby(["eps", "gradient", *LINE], sort=False):
            x, y = _mean(seeds)
            look = styles[seeds["rule"].iloc[0], seeds["variant"].iloc[0]].properties()
            look |= {"linestyle": style_of(attack, gradient), "markevery": [-1]}
            yield Curve(f"{attack}, scale {scale}" if scale else attack, eps, x, y, look)


def _mean(seeds: pd.DataFrame) -> tuple[Floats, Floats]:
    """Mean accuracy over seeds, from zero effort to the largest allowed one."""
    efforts = {effort for found in seeds["found"] for effort, _ in found}
    x = np.array(sorted(efforts | {0, *map(_budget, seeds["settings"])}), dtype=np.float64)
    cells = zip(seeds["found"], seeds["n_clean"], seeds["n"], strict=True)
    return x, np.mean([accuracy_after(found, n_clean, n, x) for found, n_clean, n in cells], axis=0)


def _budget(settings: Mapping[str, str]) -> int:
    """The largest number of steps or queries that an attack may use."""
    for key in ("attack.queries", "attack.attempts"):
        if key in settings:
            return int(settings[key])
    return int(settings.get("attack.steps", 0)) * int(settings.get("attack.restarts", 1))


def _legend(cells: pd.DataFrame) -> list[Line2D]:
    lines = set(zip(cells["rule"], cells["variant"], strict=True))
    styles = line_styles(lines)
    handles = [
        Line2D([], [], label=legend_label(rule, variant), **styles[rule, variant].properties())
        for rule, variant in sorted(lines, key=lambda line: (rank(line[0], RULES), line[1]))
    ]
    for gradient in sorted(set(cells["gradient"]) - {""}, key=lambda name: rank(name, GRADIENTS)):
        style = style_of("", gradient)
        handles.append(Line2D([], [], color="0.4", linestyle=style, label=f"{gradient} gradient"))
    return handles
