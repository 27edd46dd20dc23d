"""Range check of numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

from sstune.schema import RunConfig
from sstune.schema.keys import Range, keys_of


def out_of_range(config: RunConfig, values: Mapping[str, list[Any]]) -> Iterator[str]:
    """Every number outside the range of its key, or not finite, as ``key: what was expected``.

    Args:
        values: dotted key -> the values in it, as :func:`sstune.validation.leaves.leaves` finds them.
    """
    ranges = _ranges(config)
    for key, held in values.items():
        within = ranges.get(key, Range())
        for value in held:
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if isinstance(value, float) and not math.isfinite(value):
                yield f"{key}: {value} is out of range, expected a finite number"
            elif value not in within:
                bounds = f"{'>' if within.above else '>='} {within.low:g}"
                if within.high < 1e6 or value > within.high:
                    bounds += f" and <= {within.high:.10g}"
                yield f"{key}: {_number(value)} is out of range, expected {bounds}"


def _ranges(config: RunConfig) -> dict[str, Range]:
    """Dotted key -> its range."""
    ranges: dict[str, Range] = {}
    for name, key in keys_of(type(config)).items():
        section = getattr(config, name)
        if is_dataclass(section):
            declared = keys_of(type(section)).items()
            ranges |= {f"{name}.{part}": inner.within for part, inner in declared}
        else:
            ranges[name] = key.within
    return ranges


def _number(value: float) -> str:
    try:
        return f"{value:.10g}"
    except OverflowError:  # an int beyond any float
        return (
            f"a number of some {round(math.log10(value))} digits" if value > 0 else "a number below any float"
        )
