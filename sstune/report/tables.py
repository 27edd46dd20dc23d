"""Tables from :func:`sstune.report.measurements.frame`: long and wide, as CSV, LaTeX and text.

Metrics are never mixed: unless all measurements are of accuracy, a CSV has a column ``metric``, and LaTeX and
text have a table for each metric.
"""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sstune.metric import metric_named
from sstune.report.measurements import CELL, LINE, by_metric, columns_for, interval
from sstune.report.order import attack_rank, cell_order
from sstune.report.variants import LABELS, joined
from sstune.schema import shown

LONG = [*LINE, "attack", "gradient", "source", "eps", "seeds", "n", "mean", "std", "low", "high"]
MISSING = "--"
GAP = "  "
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")  # a spreadsheet interprets cells that start with these
GRADIENT_NOTES = {
    "rule": "rule: attacked through the rule's own backward pass",
    "exact": "exact: through the true gradient of the same weights",
    "surrogate": "NAME@DIGEST: through the true gradient of that other network",
}


def table(cells: pd.DataFrame) -> pd.DataFrame:
    """The long table, columns :data:`LONG`: mean and sample std over seeds in [0, 1]; no std for one seed.

    ``low`` and ``high`` are the 95 % interval with respect to the ``n`` test samples, see
    :func:`sstune.report.measurements.interval`; ``std`` is the spread over seeds.
    """
    return _over_seeds(cells, [*LINE, "metric", *CELL, "n"])[columns_for(cells, LONG)]


def lines(cells: pd.DataFrame) -> pd.DataFrame:
    """The long table with complete lines, plus ``metric``, ``eps_value`` and ``chance``.

    A network attacked with two settings, say 10 and 20 steps, has a line for each; cells that do not depend
    on them, such as the clean accuracy, are repeated in both.
    """
    net = [*LABELS, "model_variant", "metric"]
    means = _over_seeds(cells, [*net, "attack_variant", *CELL, "eps_value", "n"])
    parts = []
    for _, own in means.groupby(net, sort=False):
        in_one_way = own.groupby("attack")["attack_variant"].transform("nunique") == 1
        everywhere = in_one_way & (own["attack_variant"] == "")
        for choice in own.loc[~everywhere, "attack_variant"].unique() if not everywhere.all() else [""]:
            part = own[everywhere | (own["attack_variant"] == choice)]
            parts.append(part.assign(variant=joined(part["model_variant"].iloc[0], choice)))
    return pd.concat(parts, ignore_index=True)[["metric", *LONG, "eps_value", "chance"]]


def wide(cells: pd.DataFrame) -> pd.DataFrame:
    """Means in [0, 1]: index :data:`LINE` (and metric), columns (attack, eps, gradient), NaN: not measured.

    Of several sample sizes of one cell (clean: the whole test set, and its attacked part), the largest is
    shown. Surrogate gradients are named with their source.
    """
    grid = _pivot(_largest(lines(cells)), "mean", columns_for(cells, LINE))
    columns = grid.columns.to_frame()
    columns["gradient"] = [joined(*pair) for pair in zip(columns["gradient"], columns["source"], strict=True)]
    return grid.set_axis(pd.MultiIndex.from_frame(columns[CELL[:3]]), axis=1)


def to_csv(frame: pd.DataFrame) -> str:
    """A long or wide table as CSV: six decimals, or three significant digits below 1e-4; missing values
    empty.

    Texts that a spreadsheet would interpret as a formula, or that start with ``'``, are prefixed with ``'``.
    Control characters are escaped.
    """
    if isinstance(frame.columns, pd.MultiIndex):
        frame = frame.set_axis([joined(*column) for column in frame.columns], axis=1).reset_index()
    frame = frame.rename(columns=_no_formula).map(_no_formula)
    return frame.to_csv(index=False, float_format=_decimals, lineterminator="\n")


def _no_formula(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    return f"'{shown(cell)}" if cell.startswith(_FORMULA) else shown(cell)


def _decimals(value: Any) -> str:
    return f"{value:.6f}" if value == 0 or abs(value) >= 1e-4 else f"{value:.3g}"


def to_latex(cells: pd.DataFrame) -> str:
    """The wide table in percent as a ``tabular`` for each metric; requires booktabs."""
    return "\n".join(_tabular(_layout(part, metric, r" $\pm$ ")) for metric, part in by_metric(lines(cells)))


def _tabular(layout: _Layout) -> str:
    first = len(layout.labels)
    out = [f"% {note}" for note in [layout.heading, *layout.notes] if note]
    out += [rf"\begin{{tabular}}{{{'l' * first}{'r' * len(layout.columns)}}}", r"\toprule"]
    for level in layout.levels():
        texts, rules = [""] * first, []
        for start, stop, name in layout.spans(level):
            texts.append(rf"\multicolumn{{{stop - start}}}{{c}}{{{_escape(name)}}}" if name else "")
            if name:
                rules.append(rf"\cmidrule(lr){{{first + start + 1}-{first + stop}}}")
        out += [_latex_line(texts), " ".join(rules)]
    out += [_latex_line(map(_escape, [*layout.labels, *layout.names()])), r"\midrule"]
    out += [_latex_line([*map(_escape, labels), *texts]) for labels, texts in layout.body]
    return "\n".join([*out, r"\bottomrule", r"\end{tabular}", ""])


def to_text(cells: pd.DataFrame, width: int = 110) -> str:
    """The wide table in percent for a terminal, one for each metric, split into blocks of at most ``width``
    columns of text."""
    return "\n".join(_text(_layout(part, metric, "±"), width) for metric, part in by_metric(lines(cells)))


def _text(layout: _Layout, width: int) -> str:
    blocks = ["\n".join(_text_block(layout, columns)) for columns in _fitting(layout, width)]
    notes = "\n".join(textwrap.fill(note, width) for note in layout.notes)
    return "\n\n".join([*filter(None, [layout.heading]), *blocks, notes]) + "\n"


@dataclass(frozen=True)
class _Layout:
    """A wide table as texts. ``labels`` are the line columns that vary, and rule; ``heading`` holds the
    values of the others."""

    heading: str
    labels: list[str]
    columns: list[tuple[str, str, str, str]]
    body: list[tuple[list[str], list[str]]]
    notes: list[str]

    def levels(self) -> list[int]:
        """Header levels above the last one: 0 attack, 1 eps; none if all columns are clean."""
        return [0, 1] if any(eps for _, eps, _, _ in self.columns) else []

    def spans(self, level: int, columns: Sequence[int] | None = None) -> Iterator[tuple[int, int, str]]:
        """Adjacent columns of one attack (level 1: and eps): start, stop, name; clean has none."""
        chosen = [self.columns[index] for index in (range(len(self.columns)) if columns is None else columns)]
        start = 0
        for key, group in itertools.groupby(chosen, lambda column: column[: level + 1]):
            stop = start + len(list(group))
            yield start, stop, "" if key[0] == "clean" else key[level]
            start = stop

    def names(self) -> list[str]:
        """The last header level: the gradient or its source."""
        return [
            "clean" if attack == "clean" else source or gradient
            for attack, _, gradient, source in self.columns
        ]


def _layout(cells: pd.DataFrame, metric: str, plus_minus: str) -> _Layout:
    """One metric's part of :func:`lines`."""
    cells = _largest(cells)
    cells[[*LINE, *CELL]] = cells[[*LINE, *CELL]].map(shown)
    texts = [
        f"{100 * mean:.1f}" + (f"{plus_minus}{100 * std:.1f}" if seeds > 1 else "")
        for mean, std, seeds in zip(cells["mean"], cells["std"], cells["seeds"], strict=True)
    ]
    grid = _pivot(cells.assign(text=texts), "text", LINE).fillna(MISSING)
    varying = [key for key in LINE if key == "rule" or cells[key].nunique() > 1]
    shared = [f"{key} {cells[key].iloc[0]}" for key in LINE if key not in varying and cells[key].iloc[0]]
    labels = grid.index.to_frame()[varying].to_numpy().tolist()
    values = grid.to_numpy().tolist()
    return _Layout(
        heading=", ".join(shared),
        labels=varying,
        columns=list(grid.columns.to_frame().itertuples(index=False, name=None)),
        body=list(zip(labels, values, strict=True)),
        notes=_notes(cells, metric, any(MISSING in line for line in values)),
    )


def _notes(cells: pd.DataFrame, metric: str, missing: bool) -> list[str]:
    spread = " (mean and sample std over seeds)" if (cells["seeds"] > 1).any() else ""
    label = shown(metric_named(metric).label)
    counts = f"{label} in %{spread}; n = {_per_attack(cells, 'n')}; seeds = {_per_attack(cells, 'seeds')}"
    words = [note for gradient, note in GRADIENT_NOTES.items() if (cells["gradient"] == gradient).any()]
    if (cells["attack"] == "audit").any():
        words.append("audit: the worst case over all that an audit tried")
    if missing:
        words.append(f"{MISSING}: not measured")
    return [counts, *filter(None, ["; ".join(words)])]


def _per_attack(cells: pd.DataFrame, column: str) -> str:
    """``"10000 (clean), 1000 (fgsm, pgd)"``, or one number if all are equal."""
    attacks: dict[str, list[str]] = {}
    for attack in sorted(cells["attack"].unique(), key=attack_rank):
        low, high = cells.loc[cells["attack"] == attack, column].agg(["min", "max"])
        attacks.setdefault(f"{low}" if low == high else f"{low} to {high}", []).append(attack)
    if len(attacks) == 1:
        return next(iter(attacks))
    return ", ".join(f"{value} ({', '.join(names)})" for value, names in attacks.items())


def _over_seeds(cells: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    grouped = cells.groupby(keys, sort=False, dropna=False)
    found = grouped["value"].agg(["size", "mean", "std"]).rename(columns={"size": "seeds"}).reset_index()
    found["chance"] = grouped["chance"].last().to_numpy()
    seeds: list[list[Any]] = [[] for _ in range(len(found))]
    measured = cells[["n", "counted", "value", "values", "samples", "interval"]].to_dict("records")
    for number, record in zip(grouped.ngroup(), measured, strict=True):
        seeds[number].append(record)
    found["low"], found["high"] = zip(*map(interval, seeds), strict=True)
    return found


def _largest(cells: pd.DataFrame) -> pd.DataFrame:
    of_one_cell = [*LINE, "metric", *CELL]
    return cells.sort_values("n", kind="stable").drop_duplicates(of_one_cell, keep="last").sort_index()


def _pivot(cells: pd.DataFrame, value: str, line: list[str]) -> pd.DataFrame:
    """A pivot table: lines in the order of ``cells``, columns in the order of :func:`cell_order`."""
    records = sorted(cells.to_dict("records"), key=cell_order)
    columns = pd.MultiIndex.from_frame(pd.DataFrame(records)[CELL].drop_duplicates())
    index = pd.MultiIndex.from_frame(cells[line].drop_duplicates())
    return cells.set_index([*line, *CELL])[value].unstack(CELL).reindex(index=index, columns=columns)


def _latex_line(texts: Iterable[str]) -> str:
    return " & ".join(texts) + r" \\"


def _escape(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    text = re.sub(r"[\\~^_%&#${}]", lambda match: special.get(match[0], "\\" + match[0]), text)
    # at the start of a line, LaTeX takes these for arguments of the preceding \\
    return f"{{{text[0]}}}{text[1:]}" if text.startswith(("[", "*")) else text


def _fitting(layout: _Layout, width: int) -> list[list[int]]:
    """Column numbers in blocks no wider than ``width``. The columns of an attack stay in one block if they
    fit, those of one eps always."""

    def fits(columns: list[int]) -> bool:
        return max(map(len, _text_block(layout, columns))) <= width

    blocks: list[list[int]] = [[]]
    for start, stop, _ in layout.spans(0):
        whole = list(range(start, stop))
        if blocks[-1] and not fits(blocks[-1] + whole) and fits(whole):
            blocks.append([])
        for first, last, _ in layout.spans(1, whole):
            part = whole[first:last]
            if blocks[-1] and not fits(blocks[-1] + part):
                blocks.append([])
            blocks[-1] += part
    return blocks


def _text_block(layout: _Layout, columns: Sequence[int]) -> list[str]:
    """The line labels and the given columns, aligned, under grouped headers."""
    names = layout.names()
    left = [
        max(map(len, texts))
        for texts in zip(layout.labels, *(labels for labels, _ in layout.body), strict=True)
    ]
    right = [max(len(names[index]), *(len(cells[index]) for _, cells in layout.body)) for index in columns]
    for level in reversed(layout.levels()):
        for start, stop, name in layout.spans(level, columns):
            right[stop - 1] += max(0, len(name) + 2 - _span(right[start:stop]))
    out = []
    for level in layout.levels():
        groups = [" " * _span(left)]
        for start, stop, name in layout.spans(level, columns):
            groups.append(f" {name} ".center(_span(right[start:stop]), "─" if name else " "))
        out.append(GAP.join(groups))
    for labels, cells in [(layout.labels, names), *layout.body]:
        texts = [text.ljust(size) for text, size in zip(labels, left, strict=True)]
        texts += [cells[index].rjust(size) for index, size in zip(columns, right, strict=True)]
        out.append(GAP.join(texts))
    return [line.rstrip() for line in out if line.strip()]


def _span(sizes: Sequence[int]) -> int:
    return sum(sizes) + len(GAP) * (len(sizes) - 1)
