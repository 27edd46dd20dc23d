"""What a task is measured by: the name, the label and the kind of a figure. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A figure in [0, 1], of which more is better.

    Args:
        name: stands in a measurement's ``metric`` and in tables.
        label: what headings and axes call it, without a unit: figures are shown in percent.
        counted: whether it is a share of correct samples, so that each sample has one bit.
        by_guessing: whether guessing among a row's ``n_classes`` scores 1 / ``n_classes``.
    """

    name: str
    label: str
    counted: bool
    by_guessing: bool = False

    def chance(self, n_classes: int) -> float | None:
        """The value that guessing among ``n_classes`` scores; None where it is not known."""
        return 1 / n_classes if self.by_guessing else None


ACCURACY = Metric("accuracy", "accuracy", counted=True, by_guessing=True)
METRICS = {
    metric.name: metric for metric in (ACCURACY, Metric("mAP", "mean average precision", counted=False))
}


def metric_named(name: str) -> Metric:
    """The metric of a row; one that is not in :data:`METRICS` is labelled by its name."""
    return METRICS.get(name, Metric(name, name, counted=False))
