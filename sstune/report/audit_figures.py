"""The plots of one audited network: its metric against eps, against steps and against queries."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib.style
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sstune.packing import unpack, unpack_values
from sstune.report.effort import UNITS, Curve, accuracy_after, complete, effort_figure, kind_of
from sstune.report.order import GRADIENTS, attack_rank, rank
from sstune.report.rows import eps_value
from sstune.report.styles import CHANCE, STYLE, axis_label, legend_beside, style_of
from sstune.report.variants import joined
from sstune.row import Measurement, Row, is_counted, metric_of
from sstune.schema import traits_of
from sstune.statistics import mean_interval, wilson

Key = tuple[str, str, str, str]
Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Values = npt.NDArray[Any]

AGAINST_EPS = (
    "Accuracy against eps (not to scale), with 95 % intervals. Signs of masking: PGD with the rule's "
    "gradient above PGD with the exact one; a transferred attack below PGD; a black-box attack below PGD on "
    "the same samples. Marks are black-box attacks on some of the samples, or of those that PGD leaves; "
    "circles are PGD on the same. "
    "After PGD: on the samples that PGD did not break."
)
VALUES_AGAINST_EPS = (
    "{metric} against eps (not to scale), with 95 % intervals. Signs of masking: {pgd} with the rule's "
    "gradient above {pgd} with the exact one; a transferred attack below {pgd}. The mark is noise at one eps "
    "on some samples, the circle {pgd} on the same samples."
)
PGD = "pgd"  # unless the row's audit names another
COLOURS = {"rule": "#D55E00", "exact": "#000000", "surrogate": "#009E73"}


def audit_figures(row: Row) -> Iterator[tuple[str, Figure]]:
    """The figures of an audit's row, each with its caption."""
    with matplotlib.style.context(STYLE):
        yield _caption(row), _against_eps(row)
        for kind, unit in UNITS.items():
            curves = list(_effort_curves(row, kind))
            if curves:
                figure = effort_figure(curves, unit)
                looks = {curve.look["label"]: curve.look for curve in curves}
                legend_beside(figure, [Line2D([], [], **look) for look in looks.values()])
                yield f"Accuracy against {unit}.", figure


def _caption(row: Row) -> str:
    clean = clean_of(row)
    if is_counted(clean):
        return AGAINST_EPS
    return VALUES_AGAINST_EPS.format(metric=metric_of(clean), pgd=row["audit"].get("pgd", PGD))


@dataclass(frozen=True)
class AttackRecord:
    """One attack of an audit at one eps. Where the metric counts no samples, sums of values stand for counts.

    Args:
        gradient: "" if the attack uses none.
        source: the name of a surrogate, or "".
        n: the number of samples; ``n_clean`` of them are correct without an attack.
        entered: number of these that were attacked. If a black box breaks few of the samples that withstand
            PGD, it is not run on the others, which count as broken.
        correct: number of the ``n`` samples that stay correct.
        interval: 95 % interval of ``correct / n``, and ``clean_interval`` of ``n_clean / n``.
        counted: whether the metric counts samples.
        drawn: whether figures show it: not with settings that only a check chooses ("pgd steps=40").
        by_pgd: for a black box, number of the same samples that stay correct under PGD with the network's own
            gradient.
        stands_for: the share of all samples that these stand for: those that PGD leaves, if they are some of
            them, else 1.
        found: ``[effort, samples]`` pairs: numbers of samples broken after so many steps or queries.
    """

    attack: str
    gradient: str
    source: str
    eps: str
    n: int
    n_clean: float
    entered: int
    correct: float
    interval: tuple[float, float]
    clean_interval: tuple[float, float]
    by_pgd: float | None
    stands_for: float
    counted: bool
    drawn: bool
    found: list[list[int]]

    @property
    def label(self) -> str:
        """The name of its series."""
        if traits_of(self.attack).suite:
            return "worst case"
        view = f"from {self.source}" if self.source else self.gradient
        after = "after PGD" if self.entered < self.n_clean else ""
        return joined(self.attack + "," * bool(view), view, after)


def attack_records(row: Row) -> list[AttackRecord]:
    """All attacks of the audit, each series in ascending order of eps, the worst case last."""
    before = _each(clean_of(row))
    pgd = row["audit"].get("pgd", PGD)
    attacked = [found for found in row["measurements"] if found["split"] == "test" and found["attack"]]
    parts: dict[Key, list[Measurement]] = {}
    cells: list[Measurement] = [*row["audit"]["cells"], *attacked]
    for cell in cells:
        key = cell["attack"] or "", cell["gradient"] or "", cell.get("source") or "", cell["eps"] or ""
        parts.setdefault(key, []).append(cell)
    found = [_record(before, key, parts, pgd) for key in parts]
    return sorted(found, key=lambda one: (*_series_rank(one), eps_value(row, one.eps)))


def clean_of(row: Row) -> Measurement:
    """The clean measurement on the test split."""
    (clean,) = (found for found in row["measurements"] if found["split"] == "test" and not found["attack"])
    return clean


def _record(before: Values, key: Key, parts: Mapping[Key, Sequence[Measurement]], pgd: str) -> AttackRecord:
    """One attack at one eps, of which ``parts`` holds one or more cells with disjoint samples.

    Args:
        before: of each sample without an attack, see :func:`_each`.
        pgd: the attack that stands beside black boxes.
    """
    attack, gradient, source, eps = key
    cells, counted = parts[key], before.dtype == np.bool_
    among, made_on = (_flags(name, cells, len(before)) for name in ("among", "made_on"))
    by_pgd, stands_for, n = None, 1.0, int(among.sum())
    if not gradient and not traits_of(attack).suite:
        (white,) = map(_each, parts[pgd, "rule", "", eps])
        by_pgd = _total(white[among])
        stands_for = _total(white) / len(white) if by_pgd == n else 1.0
    left = np.concatenate([_each(cell) for cell in cells])
    correct = _total(left)
    return AttackRecord(
        attack,
        gradient,
        source,
        eps,
        n=n,
        n_clean=_total(before[among]),
        entered=int((made_on & before).sum()) if counted else int(made_on.sum()),
        correct=correct,
        interval=wilson(correct, n) if counted else mean_interval(left),
        clean_interval=_interval(before[among]),
        by_pgd=by_pgd,
        stands_for=stands_for,
        counted=counted,
        drawn=" " not in attack.removesuffix(f" loss={pgd}"),
        found=[pair for cell in cells for pair in cell.get("found") or []],
    )


def _each(measured: Measurement) -> Values:
    """(n,) bool where samples are counted, else their values in [0,1]."""
    if is_counted(measured):
        return unpack(measured["outcomes"], measured["n"])
    return unpack_values(measured["values"], measured["n"])


def _total(each: Values) -> float:
    """The number of samples, or the sum of their values."""
    return int(each.sum()) if each.dtype == np.bool_ else float(each.sum())


def _interval(each: Values) -> tuple[float, float]:
    """95 % interval of the mean."""
    return wilson(_total(each), len(each)) if each.dtype == np.bool_ else mean_interval(each)


def _flags(name: str, cells: Sequence[Mapping[str, Any]], n: int) -> Flags:
    """(n,) bool, the samples in ``name`` of any cell; a cell without this key covers all samples."""
    flags = [unpack(cell[name], n) if name in cell else np.ones(n, bool) for cell in cells]
    return np.logical_or.reduce(flags)


def _series_rank(one: AttackRecord) -> tuple[Any, ...]:
    return attack_rank(one.attack), rank(one.gradient, GRADIENTS), one.source


def _look(one: AttackRecord) -> dict[str, Any]:
    traits = traits_of(one.attack)
    return {
        "label": one.label,
        "color": COLOURS[one.gradient] if one.gradient else traits.style.colour,
        "linestyle": style_of(one.attack, one.gradient),
        "marker": traits.style.marker,
        "markersize": 4,
        "linewidth": 2.4 if traits.suite else 1.4,
    }


def _against_eps(row: Row) -> Figure:
    shown = [one for one in attack_records(row) if one.drawn]
    eps = {"0": 0.0} | {one.eps: eps_value(row, one.eps) for one in shown}
    places = {text: place for place, text in enumerate(sorted(eps, key=lambda text: eps[text]))}
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    clean = clean_of(row)
    chance = 100 / row["n_classes"] if is_counted(clean) else 100 * row["audit"].get("chance", math.nan)
    axes.axhline(chance, **CHANCE, label=f"chance ({chance:.3g} %)")
    for label in dict.fromkeys(one.label for one in shown):
        series = [one for one in shown if one.label == label]
        x = [places[one.eps] for one in series]
        if series[0].by_pgd is None:
            _curve(axes, x, series, len(places))
        else:
            _marks(axes, np.array(x) + traits_of(series[0].attack).style.offset, series)
    axes.set_xticks(list(places.values()), list(places))
    axes.set_ylim(0, 100)
    axes.set_xlabel("eps")
    axes.set_ylabel(axis_label(metric_of(clean)))
    legend_beside(figure, axes.get_legend_handles_labels()[0])
    return figure


def _curve(axes: Axes, x: Sequence[int], series: Sequence[AttackRecord], n_places: int) -> None:
    """An attack on all samples, starting at the clean accuracy, with gaps at eps that were not attacked."""
    y, spread = np.full(n_places, np.nan), np.full((2, n_places), np.nan)
    clean = replace(series[0], correct=series[0].n_clean, interval=series[0].clean_interval)
    y[[0, *x]], spread[:, [0, *x]] = _with_interval([clean, *series])
    axes.errorbar(np.arange(n_places), y, spread, elinewidth=0.8, clip_on=False, **_look(series[0]))


def _marks(axes: Axes, x: Floats, series: Sequence[AttackRecord]) -> None:
    """A black box on some samples; each mark is connected to a circle, PGD on the same samples."""
    y, spread = _with_interval(series)
    white = np.array([100 * one.stands_for * (one.by_pgd or 0) / one.n for one in series])
    axes.vlines(x, y, white, color="0.6", linewidth=0.8, zorder=1)
    axes.plot(x, white, "o", markersize=5, fillstyle="none", color=COLOURS["rule"], clip_on=False)
    axes.errorbar(x, y, spread, elinewidth=0.8, clip_on=False, **_look(series[0]) | {"linestyle": "none"})


def _with_interval(series: Sequence[AttackRecord]) -> tuple[Floats, Floats]:
    """Percentages, and the distances to the ends of their intervals, (2, len(series))."""
    y = np.array([one.correct / one.n for one in series])
    scale = np.array([one.stands_for for one in series])
    spread = np.abs(np.array([one.interval for one in series]) - y[:, None]).T
    return 100 * scale * y, 100 * scale * spread


def _effort_curves(row: Row, kind: str) -> Iterator[Curve]:
    """The curves of the attacks whose effort has the unit ``kind``, up to the largest effort of any sample,
    at the configured eps and those of the black boxes."""
    made = attack_records(row)
    each_eps = {*row["config"]["attack"]["eps"], *(one.eps for one in made if one.by_pgd is not None)}
    shown = [
        one
        for one in made
        if one.counted and one.drawn and not one.source and kind_of(one.attack) == kind
        if one.eps in each_eps and complete(one.found, one.entered, one.correct)
    ]
    most = {one.attack: 0 for one in shown}
    for one in shown:
        most[one.attack] = max([most[one.attack], *(effort for effort, _ in one.found)])
    for one in sorted(shown, key=lambda one: (attack_rank(one.attack), eps_value(row, one.eps))):
        if most[one.attack]:  # otherwise the effort is unknown
            x = np.array(sorted({0, most[one.attack], *(effort for effort, _ in one.found)}), np.float64)
            y = accuracy_after(one.found, one.entered, one.n, x)
            yield Curve(one.attack, one.eps, x, y, _look(one) | {"markevery": [-1]})
