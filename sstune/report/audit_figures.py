"""The plots of one audited network: accuracy against eps, against steps and against queries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.style
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sstune.packing import unpack
from sstune.report.effort import UNITS, Curve, accuracy_after, complete, effort_figure, kind_of
from sstune.report.looks import STYLE, legend_beside, style_of
from sstune.report.measurements import GRADIENTS, attack_rank, rank
from sstune.report.rows import Row, eps_value
from sstune.report.variants import joined
from sstune.statistics import wilson

Measurement = Mapping[str, Any]
Key = tuple[str, str, str, str]
Flags = npt.NDArray[np.bool_]

COLOURS = {"rule": "#D55E00", "exact": "#000000", "surrogate": "#009E73"}
BLACK_BOX_COLOURS = {"square": "#0072B2", "rays": "#56B4E9", "noise": "#999999", "audit": "#CC79A7"}
# Of attacks that are made on the first of the samples only, how many these are.
LIMITS = {"noise": "black_box_n", "square": "black_box_n", "rays": "label_n"}
MARKERS = {"pgd": "o", "fgsm": "^", "square": "s", "rays": "D", "noise": "x", "audit": "v"}


def audit_figures(row: Row) -> Iterator[tuple[str, Figure]]:
    """What there is to draw of an audit's row, each with its caption."""
    with matplotlib.style.context(STYLE):
        yield (
            "Accuracy against eps (not to scale), with 95 % intervals. A black box or a transferred attack "
            "below the white box, or rule above exact, is masking. After PGD: tried on what PGD has left.",
            _against_eps(row),
        )
        for kind, unit in UNITS.items():
            curves = list(_efforts(row, kind))
            if curves:
                figure = effort_figure(curves, unit)
                looks = {curve.look["label"]: curve.look for curve in curves}
                legend_beside(figure, [Line2D([], [], **look) for look in looks.values()])
                yield f"Accuracy against {unit}.", figure


@dataclass(frozen=True)
class Tried:
    """One attack of an audit at one eps.

    Args:
        n: samples that ``correct`` is counted among, of which ``n_clean`` were right before any attack.
        entered: how many were right when this one began. A black box that finds little among the samples
            that PGD has left is not tried on the others, which count as broken.
        found: ``[effort, samples]`` pairs, how many broke after how much.
    """

    attack: str
    gradient: str
    source: str
    eps: str
    n: int
    n_clean: int
    entered: int
    correct: int
    found: list[list[int]]

    @property
    def label(self) -> str:
        """What its series is called."""
        if self.attack == "audit":
            return "worst case"
        view = f"from {self.source}" if self.source else self.gradient
        after = "after PGD" if self.entered < self.n_clean else ""
        return joined(self.attack + "," * bool(view), view, after)

    @property
    def drawn(self) -> bool:
        """Whether it has a place in a figure; an attack with other settings ("pgd steps=40") has none."""
        return " " not in self.attack


def tried(row: Row) -> list[Tried]:
    """Everything that the audit attacked with, each series from small to large eps, the worst case last."""
    clean = clean_of(row)
    right = unpack(clean["outcomes"], clean["n"])
    worst = [found for found in row["measurements"] if found["attack"] == "audit"]
    parts: dict[Key, list[Measurement]] = {}
    for cell in [*row["audit"]["cells"], *worst]:
        key = cell["attack"], cell["gradient"] or "", cell.get("source") or "", cell["eps"]
        parts.setdefault(key, []).append(cell)
    found = [_tried(row, right, key, cells) for key, cells in parts.items()]
    return sorted(found, key=lambda one: (*_series_rank(one), eps_value(row, one.eps)))


def clean_of(row: Row) -> Measurement:
    """The measurement before any attack."""
    (clean,) = (found for found in row["measurements"] if found["split"] == "test" and not found["attack"])
    return clean


def _tried(row: Row, right: Flags, key: Key, cells: Sequence[Measurement]) -> Tried:
    """One attack at one eps, from the parts that it was made in."""
    made_on = np.zeros_like(right)
    for cell in cells:
        made_on |= unpack(cell["made_on"], len(right)) if "made_on" in cell else True
    limit = LIMITS.get(key[0])
    n = min(len(right), row["config"]["audit"][limit]) if limit else len(right)
    attack, gradient, source, eps = key
    return Tried(
        attack,
        gradient,
        source,
        eps,
        n=n,
        n_clean=int(right[:n].sum()),
        entered=int((made_on & right)[:n].sum()),
        correct=sum(cell["correct"] for cell in cells),
        found=[pair for cell in cells for pair in cell.get("found") or []],
    )


def _series_rank(one: Tried) -> tuple[Any, ...]:
    return attack_rank(one.attack), rank(one.gradient, GRADIENTS), one.source


def _look(one: Tried) -> dict[str, Any]:
    return {
        "label": one.label,
        "color": COLOURS[one.gradient] if one.gradient else BLACK_BOX_COLOURS.get(one.attack, "#999999"),
        "linestyle": style_of(one.attack, one.gradient),
        "marker": MARKERS.get(one.attack, "P"),
        "markersize": 4,
        "linewidth": 2.4 if one.attack == "audit" else 1.4,
    }


def _against_eps(row: Row) -> Figure:
    shown = [one for one in tried(row) if one.drawn]
    eps = {"0": 0.0} | {one.eps: eps_value(row, one.eps) for one in shown}
    places = {text: place for place, text in enumerate(sorted(eps, key=lambda text: eps[text]))}
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    chance = 100 / row["n_classes"]
    axes.axhline(chance, color="0.4", linestyle=":", linewidth=1.2, label=f"chance ({chance:.3g} %)")
    for label in dict.fromkeys(one.label for one in shown):
        series = [one for one in shown if one.label == label]
        n = series[0].n
        points = {0: series[0].n_clean} | {places[one.eps]: one.correct for one in series}
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
    shown = [
        one
        for one in tried(row)
        if one.drawn and not one.source and one.attack != "fgsm" and kind_of(one.attack) == kind
        if one.eps in row["config"]["attack"]["eps"] and complete(one.found, one.entered, one.correct)
    ]
    most = {one.attack: 0 for one in shown}
    for one in shown:
        most[one.attack] = max([most[one.attack], *(effort for effort, _ in one.found)])
    for one in sorted(shown, key=lambda one: (attack_rank(one.attack), eps_value(row, one.eps))):
        if most[one.attack]:  # otherwise it does not tell
            x = np.array(sorted({0, most[one.attack], *(effort for effort, _ in one.found)}), np.float64)
            y = accuracy_after(one.found, one.entered, one.n, x)
            yield Curve(one.attack, one.eps, x, y, _look(one) | {"markevery": [-1]})
