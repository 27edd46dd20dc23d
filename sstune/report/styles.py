"""How figures look: a colour for each rule, a line style for each gradient; and how they are written."""

from __future__ import annotations

import io
import itertools
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.typing import LineStyleType

from sstune.metric import ACCURACY, metric_named
from sstune.report.order import RULES, rank
from sstune.schema import traits_of
from sstune.storage import write_bytes

if TYPE_CHECKING:
    import pandas as pd

# Okabe and Ito's colours, told apart under any colour blindness
COLOURS = {
    "bp": "#000000",
    "sham": "#999999",
    "usf": "#0072B2",
    "frsf": "#E69F00",
    "brsf": "#009E73",
    "fa": "#D55E00",
    "dfa": "#CC79A7",
    "fa_signed": "#F0E442",
    "kp": "#999933",
    "wm": "#882255",
    "pfa": "#56B4E9",
    "pfa_o": "#332288",
}
OTHER_COLOURS = ("#AA4499", "#88CCEE", "#DDCC77")
STYLES: dict[str, LineStyleType] = {"rule": "--", "exact": "-", "surrogate": (0, (8, 2))}  # of a gradient
OTHER_STYLE: LineStyleType = "-."
CHANCE: dict[str, Any] = {"color": "0.75", "linewidth": 0.8}  # of the line at what guessing scores
MARKERS = "os^Dv*XP"
# the built-in style, not the user's matplotlibrc; a fixed salt, so that an SVG's ids are the same every time;
# a name with two $ is a name and no formula
STYLE: list[str | Path | dict[str, Any]] = [
    "default",
    {
        "svg.hashsalt": "sstune",
        "text.parse_math": False,
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    },
]


@dataclass(frozen=True)
class LineStyle:
    """Rules differ in colour, the variants of one rule in marker. Widths fall, so that a curve that coincides
    with an earlier one leaves its rim to be seen."""

    colour: str
    marker: str
    width: float

    def properties(self) -> dict[str, Any]:
        """As matplotlib's line properties."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "linewidth": self.width,
            "markersize": 2.8 + self.width,
        }


LineStyles = dict[tuple[str, str], LineStyle]


def line_styles(lines: Iterable[tuple[str, str]]) -> LineStyles:
    """The style of each (rule, variant)."""
    lines = set(lines)
    rules = sorted({rule for rule, _ in lines}, key=lambda name: rank(name, RULES))
    colours = colours_of(rules)
    styles: LineStyles = {}
    for later, rule in enumerate(reversed(rules)):
        variants = sorted(variant for name, variant in lines if name == rule)
        for variant, marker in zip(variants, itertools.cycle(MARKERS), strict=False):
            styles[rule, variant] = LineStyle(colours[rule], marker, 1.2 + 0.5 * later)
    return styles


def colours_of(rules: Iterable[str]) -> dict[str, str]:
    """A colour for each rule: its own, or the next free one."""
    others = [rule for rule in sorted(set(rules)) if rule not in COLOURS]
    return COLOURS | dict(zip(others, itertools.cycle(OTHER_COLOURS), strict=False))


def style_of(attack: str, gradient: str) -> LineStyleType:
    """The line style of an attack through ``gradient``; "" is one that needs none."""
    if gradient:
        return STYLES.get(gradient, OTHER_STYLE)
    return traits_of(attack).style.line


def legend_label(rule: str, variant: str) -> str:
    """What a legend calls a line."""
    return f"{rule} ({variant})" if variant else rule


def file_name(label: object) -> str:
    """A label as part of a file's name."""
    return re.sub(r"[^\w.-]+", "_", str(label))


def axis_label(metric: str) -> str:
    """What an axis calls a metric, in percent."""
    return f"{metric_named(metric).label} (%)"


def metric_suffix(metric: str) -> str:
    """What the names of a metric's figures end in; nothing for accuracy."""
    return "" if metric == ACCURACY.name else f"-{file_name(metric)}"


def each_network(cells: pd.DataFrame, stem: str | Path) -> Iterator[tuple[pd.DataFrame, str, str, str]]:
    """For each (dataset, backbone) its part of ``cells``, both names, and the stem of its figure's name."""
    groups = cells.groupby(["dataset", "backbone"], sort=True)
    for (dataset, backbone), group in groups:
        suffix = f"-{file_name(dataset)}-{file_name(backbone)}" if len(groups) > 1 else ""
        yield group, str(dataset), str(backbone), f"{stem}{suffix}"


def legend_beside(figure: Figure, handles: Sequence[Artist]) -> None:
    """A legend to the right of the panels, where it covers nothing."""
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)


def printable(figure: Figure) -> Figure:
    """``figure`` with what no font can show (control characters, bytes of a file's name) as escapes."""
    for text in figure.findobj(Text):
        text.set_text(re.sub(r"[^\n]", lambda match: _shown(match[0]), text.get_text()))
    return figure


def _shown(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def save(figure: Figure, stem: str | Path) -> list[Path]:
    """Write ``stem.png`` and ``stem.svg``, byte for byte the same for the same figure; returns both."""
    written = []
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        path = Path(f"{stem}.{kind}")
        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # a name in letters that the font lacks: boxes
            printable(figure).savefig(file, format=kind, dpi=150, bbox_inches="tight", metadata=metadata)
        write_bytes(path, file.getbuffer())
        written.append(path)
    return written
