"""A picture of queries, each with the nearest images of a database."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.style
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sstune.report.grid import Images
from sstune.report.styles import STYLE, printable

PER_LINE = 10  # items; more are continued in another line
RELEVANT, OTHER = "#009E73", "#B3261E"  # frames; dashed for other items
FIRST, PITCH, HEIGHT = 1.45, 1.12, 1.35  # place of the first item, and distances of items and lines
LEFT = 1.9  # room for titles, in inches
SIZE = 0.8  # of an image, in inches


@dataclass(frozen=True, eq=False)
class Found:
    """A query and its nearest items, the nearest first.

    Args:
        title: text on the left, such as the class of the query.
        query: (C, H, W).
        items: (n, C, H, W).
        captions: a text below each item.
        relevant: (n,) bool; None: unknown, no frames.
        gap: free space above, in images.
    """

    title: str
    query: npt.NDArray[Any]
    items: Images
    captions: Sequence[str]
    relevant: npt.NDArray[Any] | None = None
    gap: float = 0.0


def neighbour_grid(found: Sequence[Found], heading: str) -> bytes:
    """A PNG with a line for each query: the query, then its items, in a solid green frame if relevant and a
    dashed red one if not.

    Args:
        found: at least one.
        heading: a line above, which may explain the captions.
    """
    widest = max(min(PER_LINE, len(one.items)) for one in found)
    heights = [one.gap + HEIGHT * max(1, -(-len(one.items) // PER_LINE)) for one in found]
    width, height = FIRST + PITCH * widest, sum(heights)
    with matplotlib.style.context(STYLE):
        left = LEFT / (LEFT + SIZE * width)
        figure = Figure(figsize=(LEFT + SIZE * width, SIZE * (height + 0.45)))
        FigureCanvasAgg(figure)
        axes = figure.add_axes((left, 0, 1 - left, 1))
        axes.set_axis_off()
        axes.text(FIRST, -0.15, heading, ha="left", va="bottom", fontsize="small")
        top = 0.0
        for one, tall in zip(found, heights, strict=True):
            _line(axes, one, top + one.gap)
            top += tall
        axes.set(xlim=(-0.05, width), ylim=(height, -0.45))  # images have set limits of their own
        file = io.BytesIO()
        printable(figure).savefig(
            file, format="png", dpi=120, bbox_inches="tight", pad_inches=0.1, metadata={"Software": None}
        )
    return file.getvalue()


def _line(axes: Axes, one: Found, top: float) -> None:
    axes.text(-0.15, top + 0.5, one.title, ha="right", va="center", fontsize="small")
    _image(axes, one.query, 0, top)
    for number, (item, caption) in enumerate(zip(one.items, one.captions, strict=True)):
        row, column = divmod(number, PER_LINE)
        x, y = FIRST + PITCH * column, top + HEIGHT * row
        _image(axes, item, x, y)
        axes.text(x + 0.5, y + 1.05, caption, ha="center", va="top", fontsize="x-small")
        if one.relevant is not None:
            colour, line = (RELEVANT, "-") if one.relevant[number] else (OTHER, (0, (3, 1.5)))
            frame = Rectangle((x, y), 1, 1, fill=False, edgecolor=colour, linestyle=line, linewidth=2.2)
            axes.add_patch(frame)


def _image(axes: Axes, image: npt.NDArray[Any], x: float, y: float) -> None:
    """In the square from (x, y) to (x + 1, y + 1), with its own aspect ratio."""
    height, width = image.shape[1:]
    across, down = width / max(height, width), height / max(height, width)
    x, y = x + (1 - across) / 2, y + (1 - down) / 2
    pixels = image.transpose(1, 2, 0)
    extent = (x, x + across, y + down, y)
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=extent, interpolation="nearest", aspect="auto")
