"""Style of figures: a colour for each rule, a line style for each gradient; and saving figures."""

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
STYLES: dict[str, LineStyleType] = {"rule": "--", "exact": "-", "surrogate": (0, (8, 2))}  # by gradient
OTHER_STYLE: LineStyleType = "-."
CHANCE: dict[str, Any] = {"color": "0.75", "linewidth": 0.8}  # the line at chance level
MARKERS = "os^Dv*XP"
# the built-in style, not the user's matplotlibrc; a fixed salt makes ids in SVGs reproducible; names with $
# are not formulas
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
    """Rules differ in colour, variants of a rule in marker. Widths decrease, so that a covered curve keeps a
    visible rim."""

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
    """Colours by rule; rules without a colour of their own get one of :data:`OTHER_COLOURS`."""
    others = [rule for rule in sorted(set(rules)) if rule not in COLOURS]
    return COLOURS | dict(zip(others, itertools.cycle(OTHER_COLOURS), strict=False))


def style_of(attack: str, gradient: str) -> LineStyleType:
    """The line style of an attack with ``gradient``; "" for none."""
    if gradient:
        return STYLES.get(gradient, OTHER_STYLE)
    return traits_of(attack).style.line


def legend_label(rule: str, variant: str) -> str:
    """The label of a line in legends."""
    return f"{rule} ({variant})" if variant else rule


def file_name(label: object) -> str:
    """A label as part of a file name."""
    return re.sub(r"[^\w.-]+", "_", str(label))


def axis_label(metric: str) -> str:
    """The axis label of a metric in percent."""
    return f"{metric_named(metric).label} (%)"


def metric_suffix(metric: str) -> str:
    """The suffix in the file names of a metric's figures; empty for accuracy."""
    return "" if metric == ACCURACY.name else f"-{file_name(metric)}"


def each_network(cells: pd.DataFrame, stem: str | Path) -> Iterator[tuple[pd.DataFrame, str, str, str]]:
    """For each (dataset, backbone): its part of ``cells``, both names, and its figure's file name stem."""
    groups = cells.groupby(["dataset", "backbone"], sort=True)
    for (dataset, backbone), group in groups:
        suffix = f"-{file_name(dataset)}-{file_name(backbone)}" if len(groups) > 1 else ""
        yield group, str(dataset), str(backbone), f"{stem}{suffix}"


def legend_beside(figure: Figure, handles: Sequence[Artist]) -> None:
    """Place a legend to the right of the panels."""
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)


def printable(figure: Figure) -> Figure:
    """``figure`` with unprintable characters in its texts escaped."""
    for text in figure.findobj(Text):
        text.set_text(re.sub(r"[^\n]", lambda match: _shown(match[0]), text.get_text()))
    return figure


def _shown(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def save(figure: Figure, stem: str | Path) -> list[Path]:
    """Write ``stem.png`` and ``stem.svg`` reproducibly, byte for byte; returns both paths."""
    written = []
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        path = Path(f"{stem}.{kind}")
        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="Glyph"
            )  # letters that the font lacks are drawn as boxes
            printable(figure).savefig(file, format=kind, dpi=150, bbox_inches="tight", metadata=metadata)
        write_bytes(path, file.getbuffer())
        written.append(path)
    return written
