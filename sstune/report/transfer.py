"""Map of transferred attacks: the metric of a network (column) attacked from another one (line)."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sstune.metric import metric_named
from sstune.report.measurements import by_metric
from sstune.report.order import attack_rank
from sstune.report.styles import STYLE, file_name, metric_suffix, save
from sstune.report.variants import joined

PANEL = ["attack", "attack_variant", "eps"]
TARGET = ["backbone", "rule", "scale", "model_variant"]
OWN = "its own"


def transfer_map(cells: pd.DataFrame, stem: str | Path) -> list[Path]:
    """Draw ``stem.png`` and ``stem.svg``, one figure for each metric and dataset; nothing without transferred
    attacks.

    Panels: a row for each attack, a column for each eps. Cells: the metric under attack in %, mean over the
    target's seeds. Lines below the sources show the same attack with the target's own gradients, if measured.

    Args:
        cells: :func:`sstune.report.measurements.frame`.
    """
    transferred = cells[cells["gradient"] == "surrogate"]
    cells = cells.merge(transferred[["dataset", "metric", *PANEL]].drop_duplicates())
    written = []
    for metric, part in by_metric(cells):
        for dataset, group in part.groupby("dataset", sort=True):
            suffix = f"-{file_name(dataset)}" if part["dataset"].nunique() > 1 else ""
            title = (
                f"robust {metric_named(metric).label} (%) of each column, attacked from each line; {dataset}"
            )
            with matplotlib.style.context(STYLE):
                written += save(_figure(group, title), f"{stem}{metric_suffix(metric)}{suffix}")
    return written


def _figure(cells: pd.DataFrame, title: str) -> Figure:
    cells = cells.assign(source=_sources(cells), target=_targets(cells))
    found = set(zip(cells["attack"], cells["attack_variant"], strict=True))
    attacks = sorted(found, key=lambda pair: (attack_rank(pair[0]), pair[1]))
    each_eps = list(cells.sort_values(["eps_value", "eps"])["eps"].unique())
    sources = sorted(cells["source"].unique(), key=_own_last)
    targets = list(cells["target"].unique())
    width, height = 0.45 * len(targets) + 0.3, 0.28 * len(sources) + 0.3
    labels = [_wrapped(joined(attack, f"({variant})" if variant else "")) for attack, variant in attacks]
    # room for attack labels on the left and vertical names below
    beside = 2.0 + 0.075 * _widest(labels), 0.9 + 0.075 * _widest(map(_wrapped, targets))
    size = width * len(each_eps) + beside[0], height * len(attacks) + beside[1]
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(attacks), len(each_eps), sharex=True, sharey=True, squeeze=False)
    for (attack, variant), label, line in zip(attacks, labels, panels, strict=True):
        line[0].set_ylabel(label, rotation=0, ha="right", va="center")
        for eps, axes in zip(each_eps, line, strict=True):
            axes.set_title(f"eps {eps}")
            shown = (cells["attack"] == attack) & (cells["attack_variant"] == variant) & (cells["eps"] == eps)
            grid = cells[shown].pivot_table(index="source", columns="target", values="value")
            _panel(axes, 100 * grid.reindex(index=sources, columns=targets))
    figure.suptitle(title)
    return figure


def _panel(axes: Axes, grid: pd.DataFrame) -> None:
    """One attack at one eps."""
    axes.imshow(grid, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for (row, column), value in np.ndenumerate(grid.to_numpy()):
        if not np.isnan(value):
            colour = "white" if value < 50 else "black"
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=colour)
    axes.set_yticks(range(len(grid.index)), grid.index)
    axes.set_xticks(range(len(grid.columns)), map(_wrapped, grid.columns), rotation=90)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _wrapped(name: str) -> str:
    return textwrap.fill(name, 24)


def _widest(names: Iterable[str]) -> int:
    return max(len(line) for name in names for line in name.split("\n"))


def _sources(cells: pd.DataFrame) -> list[str]:
    pairs = zip(cells["source"], cells["gradient"], strict=True)
    return [source or f"{OWN} {gradient} gradient" for source, gradient in pairs]


def _own_last(source: str) -> tuple[bool, str]:
    return source.startswith(OWN), source


def _targets(cells: pd.DataFrame) -> list[str]:
    """Names of the attacked networks: the rule, and the other columns that vary."""
    varying = [key for key in TARGET if key == "rule" or cells[key].nunique() > 1]
    return [joined(*map(str, names)) for names in cells[varying].itertuples(index=False)]
