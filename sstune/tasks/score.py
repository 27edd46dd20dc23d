"""The score of a network on a set of samples, in the metric of a task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sstune.metric import ACCURACY
from sstune.row import Details


@dataclass(frozen=True, eq=False)
class Score:
    """A metric's value for N samples; larger is better.

    Args:
        value: in [0,1]; NaN of no samples.
        n: samples.
        each: (N,) on the CPU. bool, where samples are counted (accuracy): ``value`` is the share of True.
            float, where each has a value of its own (average precision): ``value`` is the mean. None, where
            a set has a value and a sample has none (COCO's AP).
        interval: 95 % interval of ``value``, for a metric without a value for each sample.
        more: further figures, by name.
        curves: further lists of figures, by name.
    """

    value: float
    n: int
    each: Tensor | None = None
    interval: tuple[float, float] | None = None
    more: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @classmethod
    def count(cls, correct: Tensor) -> Score:
        """From (N,) bool, which samples are correct."""
        n = len(correct)
        return cls(int(correct.sum()) / n if n else math.nan, n, correct)

    @classmethod
    def mean(cls, values: Tensor, **more: float) -> Score:
        """From (N,) float in [0,1], the value of each sample."""
        return cls(float(values.double().mean()), len(values), values, more=more)

    @property
    def correct(self) -> int | None:
        """How many samples are correct, where they are counted."""
        return int(self.each.sum()) if self.each is not None and self.each.dtype is torch.bool else None

    def __str__(self) -> str:
        if self.correct is not None:
            return f"{self.correct}/{self.n} correct"
        return f"{self.value:.3f} on {self.n} samples"

    def fields(self, metric: str) -> Details:
        """The keys of a measurement: ``correct`` where samples are counted, otherwise metric and value."""
        found: Details = {} if metric == ACCURACY.name else {"metric": metric}
        if self.correct is None:
            found["value"] = self.value
        else:
            found["correct"] = self.correct
        if self.interval is not None:
            found["interval"] = list(self.interval)
        if self.more:
            found["more"] = dict(self.more)
        if self.curves:
            found["curves"] = {name: list(values) for name, values in self.curves.items()}
        return found
