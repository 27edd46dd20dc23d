"""A grid of clean images, adversarial images and their differences, with the predicted classes."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import matplotlib.style
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sstune.report.styles import STYLE, printable

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

GREY = 128
LINES = 12  # largest number of samples shown
RIGHT, WRONG = "0.2", "#B3261E"


@dataclass(frozen=True)
class Attacked:
    """Adversarial ``images``, (k, C, H, W), with the network's ``predicted`` classes, (k,); ``title`` names
    attack, gradient and eps."""

    title: str
    images: Images
    predicted: Labels


def image_grid(
    clean: Images,
    labels: Labels,
    predicted: Labels,
    attacked: Sequence[Attacked],
    classes: Sequence[str],
) -> bytes:
    """A PNG with a line for each sample (at most 12, evenly spaced): the clean image, then for each attack
    the adversarial image and the difference.

    The predicted class is below an image, red if wrong; the true class is on the left. Differences are
    centred at grey and magnified by the factor in the title, which is common to all samples of an attack.
    They are grey for samples that are misclassified without an attack.

    Args:
        clean: (k, C, H, W), k >= 1, C = 1 or 3; ``labels`` and ``predicted``, (k,), index ``classes``.
    """
    lines = np.linspace(0, len(clean) - 1, min(len(clean), LINES)).round().astype(np.int64)
    labels, names = labels[lines], np.array(classes)
    with matplotlib.style.context(STYLE):
        size = (1.1 * (1 + 2 * len(attacked)) + 0.8, 1.2 * len(lines) + 0.4)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        first, *columns = figure.subplots(len(lines), 1 + 2 * len(attacked), squeeze=False).T
        _column(first, "clean", clean[lines])
        _name(first, names[predicted[lines]], predicted[lines] == labels)
        for name, axes in zip(names[labels], first, strict=True):
            axes.set_ylabel(name, rotation=0, ha="right", va="center")
        for one, left, right in zip(attacked, columns[::2], columns[1::2], strict=True):
            _column(left, one.title, one.images[lines])
            _name(left, names[one.predicted[lines]], one.predicted[lines] == labels)
            shown, times = magnified(clean, one.images)
            _column(right, f"difference × {times}", shown[lines])
        file = io.BytesIO()
        printable(figure).savefig(
            file, format="png", dpi=120, bbox_inches="tight", metadata={"Software": None}
        )
    return file.getvalue()


def magnified(clean: Images, adversarial: Images) -> tuple[Images, int]:
    """The differences around grey, times the largest integer that avoids clipping, and this integer."""
    difference = adversarial.astype(np.int64) - clean
    times = max(1, (GREY - 1) // max(1, int(np.abs(difference).max(initial=0))))
    return (GREY + times * difference).clip(0, 255).astype(np.uint8), times


def _column(panels: Iterable[Axes], title: str, images: Images) -> None:
    for index, (axes, image) in enumerate(zip(panels, images, strict=True)):
        axes.imshow(image.transpose(1, 2, 0), interpolation="nearest", cmap="gray", vmin=0, vmax=255)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        if index == 0:
            axes.set_title(textwrap.fill(title, 17), fontsize="small")


def _name(panels: Iterable[Axes], names: Iterable[str], right: Iterable[bool]) -> None:
    for axes, name, ok in zip(panels, names, right, strict=True):
        axes.set_xlabel(name, color=RIGHT if ok else WRONG, fontsize="small", labelpad=2)
