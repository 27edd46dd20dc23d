"""Further figures of a ranking: a table of all of them, precision against recall, and precision at N."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sstune.report.measurements import LINE, by_metric, interval
from sstune.report.order import GRADIENTS, RULES, attack_rank, rank
from sstune.report.styles import (
    STYLE,
    STYLES,
    LineStyles,
    each_network,
    legend_beside,
    legend_label,
    line_styles,
    metric_suffix,
    save,
)

CUTOFFS = range(100, 1001, 100)
# Figures that a measurement may hold in ``more``, without the K of mAP@K.
FIGURES = [
    "mAP_stable", "mAP_refined", *(f"P@{n}" for n in CUTOFFS), *(f"R@{n}" for n in CUTOFFS), "P@radius2",
    "NDCG@1000", "saturated", "zero_gradients", "bound own", "bound class vote", "bound mainstay",
]  # fmt: skip
COLUMNS = [
    *LINE, "metric", "seed", "attack", "gradient", "source", "eps", "n", "mAP", "low", "high", *FIGURES,
]  # fmt: skip
PRECISION_AT_RECALL = "precision at recall"
MARKS = 6  # markers of a curve of precision against recall

Floats = npt.NDArray[np.float64]


def of_retrieval(cells: pd.DataFrame) -> pd.DataFrame:
    """The measurements of mAP@K."""
    return cells[cells["metric"].str.startswith("mAP@")]


def retrieval_table(cells: pd.DataFrame) -> pd.DataFrame:
    """One line per measurement and seed of mAP@K, columns :data:`COLUMNS`, then other figures of ``more``.

    ``low`` and ``high`` are the 95 % interval of ``mAP`` over queries. Figures that were not measured are
    empty.

    Args:
        cells: :func:`sstune.report.measurements.frame`.
    """
    records = of_retrieval(cells).to_dict("records")
    lines = [
        {name: record[name] for name in COLUMNS if name in record} | _figures(record) for record in records
    ]
    others = sorted({name for line in lines for name in line} - set(COLUMNS))
    return pd.DataFrame(lines, columns=[*COLUMNS, *others])


def _figures(record: Mapping[Hashable, Any]) -> dict[str, float]:
    low, high = interval([record])
    suffix = record["metric"].removeprefix("mAP")
    more = {name.removesuffix(suffix): value for name, value in record["more"].items()}
    own = {"mAP": record["value"], "low": low, "high": high, "zero_gradients": record["zero_gradients"]}
    return {**more, **own}


@dataclass(frozen=True, eq=False)
class Ranking:
    """Curves of a ranking, means over queries and seeds, in [0, 1].

    Args:
        precision: at recall 1/m, 2/m ... 1.
        at: precision at each N.
    """

    precision: Floats
    at: Mapping[int, float]


def retrieval_curves(cells: pd.DataFrame, directory: Path) -> list[Path]:
    """Draw ``retrieval.png`` and ``retrieval.svg``, with the name of the metric if there are several.

    One figure for each (dataset, backbone). Columns of panels: clean, and each attack that uses the network's
    own gradient, at the eps in the middle of those measured (of two the smaller one); rows: precision against
    recall, and precision at N, for each scale.

    Args:
        cells: :func:`sstune.report.measurements.frame`.

    Returns:
        The files; none without curves.
    """
    cells = of_retrieval(cells)
    cells = cells[np.array([PRECISION_AT_RECALL in curves for curves in cells["curves"]], dtype=bool)]
    shown = cells[(cells["attack"] == "clean") | cells["gradient"].isin(["rule", "exact"])]
    written = []
    for metric, part in by_metric(shown):
        several = shown["metric"].nunique() > 1
        stem = directory / f"retrieval{metric_suffix(metric) if several else ''}"
        for group, dataset, backbone, name in each_network(part, stem):
            with matplotlib.style.context(STYLE):
                written += save(_figure(group, f"{backbone}, {dataset}"), name)
    return written


def _figure(cells: pd.DataFrame, title: str) -> Figure:
    columns = list(_columns(cells))
    scales = sorted(set(cells["scale"]) - {""}) or [""]
    figure = Figure(figsize=(2.7 * len(columns) + 0.6, 4.6 * len(scales) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2 * len(scales), len(columns), sharey=True, squeeze=False)
    styles = line_styles(zip(cells["rule"], cells["variant"], strict=True))
    for (row, scale), (column, (name, part)) in itertools.product(enumerate(scales), enumerate(columns)):
        upper, lower = panels[2 * row : 2 * row + 2, column]
        upper.set_title(f"{name}\nscale {scale}" if scale and len(scales) > 1 else name)
        _draw(upper, lower, part[part["scale"].isin(["", scale])], styles)
    for upper, lower in zip(panels[::2, 0], panels[1::2, 0], strict=True):
        upper.set_ylabel("precision (%)")
        lower.set_ylabel("precision at N (%)")
    panels[0, 0].set_ylim(0, 100)
    figure.suptitle(title)
    legend_beside(figure, _legend(cells, styles))
    return figure


def _columns(cells: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Title and cells of each column of panels. Clean: of the attacked samples, if there are attacks."""
    attacked = cells[cells["attack"] != "clean"]
    clean = cells[cells["attack"] == "clean"]
    same = clean[clean["n"].isin(attacked["n"])]
    yield "clean", clean if same.empty else same
    for attack in sorted(set(attacked["attack"]), key=attack_rank):
        part = attacked[attacked["attack"] == attack]
        each = part.drop_duplicates("eps").sort_values("eps_value")["eps"].tolist()
        eps = each[(len(each) - 1) // 2]
        yield f"{attack}, eps {eps}", part[part["eps"] == eps]


def _draw(upper: Axes, lower: Axes, cells: pd.DataFrame, styles: LineStyles) -> None:
    """Precision against recall above, precision at N below; a curve for each network and gradient."""
    # exact before rule, so that the dashes of rule are on top where both coincide (bp)
    later = [rank(gradient, GRADIENTS)[0] for gradient in cells["gradient"]]
    cells = cells.assign(later=later).sort_values("later", ascending=False, kind="stable")
    for number, (_, seeds) in enumerate(cells.groupby(["later", *LINE], sort=False)):
        style = styles[seeds["rule"].iloc[0], seeds["variant"].iloc[0]]
        look = style.properties() | {
            "linestyle": STYLES.get(seeds["gradient"].iloc[0], "-"),
            "clip_on": False,
        }
        ranking = _mean(seeds)
        levels = len(ranking.precision)
        recall = np.arange(1, levels + 1) / levels
        every = max(1, levels // MARKS)
        upper.plot(100 * recall, 100 * ranking.precision, markevery=(number * 3 % every, every), **look)
        lower.plot(list(ranking.at), [100 * value for value in ranking.at.values()], **look)
    upper.set(xlim=(0, 100), xlabel="recall (%)")
    lower.set(xlabel="N")
    lower.set_xlim(left=0)


def _mean(seeds: pd.DataFrame) -> Ranking:
    """Means over seeds."""
    curves = [np.asarray(found[PRECISION_AT_RECALL], np.float64) for found in seeds["curves"]]
    levels = min(map(len, curves))
    at = [_precision_at(more) for more in seeds["more"]]
    common = sorted(set.intersection(*map(set, at)))
    precision = np.mean([curve[:levels] for curve in curves], axis=0)
    return Ranking(precision, {n: math.fsum(each[n] for each in at) / len(at) for n in common})


def _precision_at(more: Mapping[str, float]) -> dict[int, float]:
    matches = {re.fullmatch(r"P@(\d{1,9})", name): value for name, value in more.items()}
    return {int(match[1]): value for match, value in matches.items() if match}


def _legend(cells: pd.DataFrame, styles: LineStyles) -> list[Line2D]:
    drawn = sorted(
        set(zip(cells["rule"], cells["variant"], strict=True)), key=lambda p: (rank(p[0], RULES), p[1])
    )
    handles = [
        Line2D([], [], label=legend_label(rule, variant), **styles[rule, variant].properties())
        for rule, variant in drawn
    ]
    for gradient in sorted(set(cells["gradient"]) - {""}, key=lambda name: rank(name, GRADIENTS)):
        handles.append(Line2D([], [], color="0.4", linestyle=STYLES[gradient], label=f"{gradient} gradient"))
    return handles
