"""Metrics: name, label and kind. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A metric in [0, 1]; larger is better.

    Args:
        name: name in rows and tables.
        label: name in headings and axes, without unit: values are shown in percent.
        counted: whether it is the share of correct samples.
        by_guessing: whether random guessing among ``n_classes`` scores 1 / ``n_classes``.
    """

    name: str
    label: str
    counted: bool
    by_guessing: bool = False

    def chance(self, n_classes: int) -> float | None:
        """The value of random guessing among ``n_classes``; None if unknown."""
        return 1 / n_classes if self.by_guessing else None


ACCURACY = Metric("accuracy", "accuracy", counted=True, by_guessing=True)
METRICS = {
    metric.name: metric for metric in (ACCURACY, Metric("mAP", "mean average precision", counted=False))
}


def metric_named(name: str) -> Metric:
    """The metric of this name; if it is not in :data:`METRICS`, its label is its name."""
    return METRICS.get(name, Metric(name, name, counted=False))
