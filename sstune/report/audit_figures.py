"""The plots of one audited network: accuracy against eps, against steps and against queries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sstune.packing import unpack
from sstune.report.effort import UNITS, Curve, accuracy_after, complete, effort_figure, kind_of
from sstune.report.looks import STYLE, legend_beside, style_of
from sstune.report.measurements import GRADIENTS, attack_rank, rank
from sstune.report.rows import Row, eps_value
from sstune.report.statistics import wilson

Measurement = Mapping[str, Any]

COLOURS = {"rule": "#D55E00", "exact": "#000000", "surrogate": "#009E73"}
BLACK_BOX_COLOURS = {"square": "#0072B2", "rays": "#56B4E9", "noise": "#999999", "audit": "#CC79A7"}
MARKERS = {"pgd": "o", "fgsm": "^", "square": "s", "rays": "D", "noise": "x", "audit": "v"}


def audit_figures(row: Row) -> Iterator[tuple[str, Figure]]:
    """What there is to draw of an audit's row, each with its caption."""
    with matplotlib.style.context(STYLE):
        yield (
            "Accuracy against eps (not to scale), with 95 % intervals. A black box or a transferred attack "
            "below the white box, or rule above exact, is masking.",
            _against_eps(row),
        )
        for kind, unit in UNITS.items():
            curves = list(_efforts(row, kind))
            if curves:
                figure = effort_figure(curves, unit)
                looks = {curve.look["label"]: curve.look for curve in curves}
                legend_beside(figure, [Line2D([], [], **look) for look in looks.values()])
                yield f"Accuracy against {unit}.", figure


def tried(row: Row) -> list[Measurement]:
    """Everything that the audit attacked with, each series from small to large eps, the worst case last."""
    worst = [found for found in row["measurements"] if found["attack"] == "audit"]
    cells = [cell for cell in row["audit"]["cells"] if cell["attack"] is not None] + worst
    return sorted(cells, key=lambda cell: (*_series_rank(cell), eps_value(row, cell["eps"])))


def label_of(cell: Measurement) -> str:
    """What a series is called."""
    if cell["attack"] == "audit":
        return "worst case"
    view = f"from {cell['source']}" if cell.get("source") else cell["gradient"]
    return f"{cell['attack']}, {view}" if view else str(cell["attack"])


def clean_of(row: Row) -> Measurement:
    """The measurement before any attack."""
    (clean,) = (found for found in row["measurements"] if found["split"] == "test" and not found["attack"])
    return clean


def n_clean(row: Row, n: int) -> int:
    """How many of the first ``n`` attacked samples were right before any attack."""
    clean = clean_of(row)
    if n == clean["n"]:
        return int(clean["correct"])
    return int(unpack(clean["outcomes"], clean["n"])[:n].sum())


def _series_rank(cell: Measurement) -> tuple[Any, ...]:
    return attack_rank(cell["attack"]), rank(cell["gradient"] or "", GRADIENTS), cell.get("source") or ""


def _look(cell: Measurement) -> dict[str, Any]:
    attack, gradient = cell["attack"], cell["gradient"] or ""
    return {
        "label": label_of(cell),
        "color": COLOURS[gradient] if gradient else BLACK_BOX_COLOURS.get(attack, "#999999"),
        "linestyle": style_of(attack, gradient),
        "marker": MARKERS.get(attack, "P"),
        "markersize": 4,
        "linewidth": 2.4 if attack == "audit" else 1.4,
    }


def _against_eps(row: Row) -> Figure:
    cells = tried(row)
    eps = {"0": 0.0} | {cell["eps"]: eps_value(row, cell["eps"]) for cell in cells}
    places = {text: place for place, text in enumerate(sorted(eps, key=lambda text: eps[text]))}
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    chance = 100 / row["n_classes"]
    axes.axhline(chance, color="0.4", linestyle=":", linewidth=1.2, label=f"chance ({chance:.3g} %)")
    for name in dict.fromkeys(map(label_of, cells)):
        series = [cell for cell in cells if label_of(cell) == name]
        n = series[0]["n"]
        points = {0: n_clean(row, n)} | {places[cell["eps"]]: cell["correct"] for cell in series}
        y = np.array([correct / n for correct in points.values()])
        spread = np.abs(np.array([wilson(correct, n) for correct in points.values()]) - y[:, None]).T
        axes.errorbar(list(points), 100 * y, 100 * spread, elinewidth=0.8, clip_on=False, **_look(series[0]))
    axes.set_xticks(list(places.values()), list(places))
    axes.set_ylim(0, 100)
    axes.set_xlabel("eps")
    axes.set_ylabel("accuracy (%)")
    legend_beside(figure, axes.get_legend_handles_labels()[0])
    return figure


def _efforts(row: Row, kind: str) -> Iterator[Curve]:
    """A panel for each attack and eps, its gradients in it, up to the most that any sample took."""
    cells = [
        cell
        for cell in tried(row)
        if cell["attack"] not in ("audit", "fgsm") and kind_of(cell["attack"]) == kind
        if not cell.get("source") and complete(cell.get("found"), n_clean(row, cell["n"]), cell["correct"])
    ]
    for attack in dict.fromkeys(cell["attack"] for cell in cells):
        own = [cell for cell in cells if cell["attack"] == attack]
        most = max(effort for cell in own for effort, _ in cell["found"])
        for cell in sorted(own, key=lambda cell: eps_value(row, cell["eps"])):
            efforts = {0, most, *(effort for effort, _ in cell["found"])}
            x = np.array(sorted(efforts), dtype=np.float64)
            y = accuracy_after(cell["found"], n_clean(row, cell["n"]), cell["n"], x)
            yield Curve(attack, cell["eps"], x, y, _look(cell) | {"markevery": [-1]})
