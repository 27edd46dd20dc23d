"""Alignment of feedback V and weights W, and of updates and true gradients, by layer in the chosen epoch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sstune.report.measurements import LINE
from sstune.report.order import RULES, rank
from sstune.report.rows import unique
from sstune.report.styles import MARKERS, STYLE, colours_of, each_network, legend_beside, legend_label, save
from sstune.report.variants import LABELS, joined, labels_of, model_settings, name_variants, without_seeds
from sstune.row import Row, metric_of

MEASURED = {
    "angle": "angle of V and W (°)",
    "update_cosine": "cosine of update and true gradient",
}
MEANS = ["angle", "sign_agreement", "rms_ratio", "update_cosine"]
COLUMNS = [*LINE, "layer", "seeds", "angle", "angle_std", "sign_agreement", "rms_ratio", "update_cosine"]


def alignment_table(rows: Iterable[Row]) -> pd.DataFrame:
    """One line per trained network and layer, in the network's order, columns :data:`COLUMNS`.

    Means over seeds, and the sample std of the angle. dfa has no angle, as its V does not have W's shape.
    """
    rows = [row for row in unique(rows) if row.get("alignment")]
    if not rows:
        return pd.DataFrame(columns=COLUMNS)
    records: list[dict[str, Any]] = []
    for row, labels in zip(rows, _labels(rows), strict=True):
        records += [{**labels, "depth": depth, **entry} for depth, entry in enumerate(row["alignment"])]
    found = pd.DataFrame(records)
    found[MEANS] = found[MEANS].astype(float)  # null where not defined
    grouped = found.groupby([*LINE, "depth", "layer"], sort=False)
    table = grouped[MEANS].mean()
    table["seeds"], table["angle_std"] = grouped["angle"].size(), grouped["angle"].std()
    table = table.reset_index()
    table["order"] = [rank(rule, RULES) for rule in table["rule"]]
    keys = ["backbone", "dataset", "order", "scale", "variant", "depth"]
    return table.sort_values(keys, ignore_index=True)[COLUMNS]


def _labels(rows: Sequence[Row]) -> list[dict[str, str]]:
    """The columns :data:`LINE` of each row."""
    networks: list[dict[str, Any]] = [
        {
            **labels_of(row),
            "metric": joined(*sorted({metric_of(found) for found in row["measurements"]})),
            "attack": "",
            "model": without_seeds(model_settings(row)),
            "settings": {},
        }
        for row in rows
    ]
    name_variants(networks)
    return [{key: network[key] for key in LINE} for network in networks]


def alignment_by_layer(table: pd.DataFrame, stem: str | Path) -> list[Path]:
    """Draw :func:`alignment_table` as ``stem.png`` and ``stem.svg``, one figure per (dataset, backbone);
    nothing if it is empty."""
    written = []
    for group, dataset, backbone, name in each_network(table, stem):
        with matplotlib.style.context(STYLE):
            written += save(_figure(group, f"{backbone}, {dataset}, chosen epoch"), name)
    return written


def _figure(table: pd.DataFrame, title: str) -> Figure:
    layers = list(dict.fromkeys(table["layer"]))
    figure = Figure(figsize=(7.4, 0.9 + max(2.0, 0.16 * len(layers))), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(MEASURED), sharey=True)
    colours = colours_of(table["rule"])
    for axes, (column, name) in zip(panels, MEASURED.items(), strict=True):
        markers = dict.fromkeys(table["rule"], 0)
        lines = [line for _, line in table.groupby([*LABELS, "variant"], sort=False)]
        for later, line in enumerate(reversed(lines)):
            rule, variant = line["rule"].iloc[0], line["variant"].iloc[0]
            places = [layers.index(layer) for layer in line["layer"]]
            marker = MARKERS[markers[rule] % len(MARKERS)]
            size = 3 + 0.8 * (len(lines) - later)  # decreasing, so that covered markers keep a visible rim
            axes.plot(
                line[column],
                places,
                color=colours[rule],
                marker=marker,
                markersize=size,
                label=legend_label(rule, variant),
            )
            markers[rule] += 1
        axes.set_xlabel(name)
    panels[0].set_yticks(range(len(layers)), layers)
    panels[0].invert_yaxis()  # the first layer on top
    panels[0].set_xlim(0, 95)
    panels[1].set_xlim(min([0.0, *table["update_cosine"].dropna()]), 1.02)
    figure.suptitle(title)
    handles, _ = panels[0].get_legend_handles_labels()
    legend_beside(figure, handles[::-1])
    return figure
