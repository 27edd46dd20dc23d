"""All test measurements of rows as one data frame, and 95 % intervals over seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from sstune.metric import ACCURACY, metric_named
from sstune.packing import unpack_values
from sstune.report.order import RULES, cell_order, metric_rank, rank
from sstune.report.rows import TOLERANCE, eps_value, norm_of, unique
from sstune.report.variants import (
    LABELS,
    attack_settings,
    coding_rank,
    joined,
    labels_of,
    model_settings,
    name_variants,
    without_seeds,
)
from sstune.row import Measurement, Row, is_counted, metric_of, value_of
from sstune.schema import Norm, RequestError
from sstune.statistics import percentile_interval, resampled_means, wilson

LINE = [*LABELS, "variant"]
CELL = ["attack", "eps", "gradient", "source"]


def frame(rows: Iterable[Row]) -> pd.DataFrame:
    """One line per test measurement and seed, sorted; the source of all tables and figures.

    A measurement that several rows repeat (such as the clean accuracy of a network, in each attack on it)
    appears once. Fields that do not apply (the scale of bp, the eps of a clean measurement) are empty or NaN.

    - :data:`LINE`, ``seed``, and the halves of the variant, ``model_variant`` and ``attack_variant``;
    - ``attack`` ("clean" without one; under L2 "pgd L2"; an audit's worst case "audit"), ``gradient``,
      ``source`` (the surrogate of a transferred attack), ``eps`` as text and ``eps_value``;
    - ``metric``, ``value`` in [0, 1], ``chance`` (the value of random guessing, NaN if unknown), ``n``
    samples;
    - ``correct``, and ``n_clean`` before the attack, for a counted metric (NaN otherwise);
    - per sample, packed: ``outcomes`` (counted) or ``values``; ``interval``, (low, high) or None;
    - ``more`` figures and ``curves`` of the same predictions, by name; ``zero_gradients``;
    - ``found`` (``[effort, samples]`` pairs), ``seconds``, ``identity``, ``samples`` (their digest);
    - ``network`` and ``attack_settings``: settings of model and attack with seeds, as JSON; without seeds, as
      dictionaries: ``model`` and ``settings``.

    Raises:
        RequestError: rows contradict each other, or none has a measurement on the test split.
    """
    records: dict[Hashable, dict[str, Any]] = {}
    for record in (record for row in unique(rows) for record in _records(row)):
        replicate = tuple(record[key] for key in ("network", "attack_settings", "metric", *CELL, "n"))
        other = records.setdefault(replicate, record)
        if not _agree(other, record):
            raise RequestError(
                f"runs {other['identity'][:12]} and {record['identity'][:12]} disagree: {record['attack']} "
                f"{record['eps']} {_results(other, record)} of {record['n']}"
            )
        if _has_samples(record) and not _has_samples(other):
            records[replicate] = record
    if not records:
        raise RequestError("no row holds a measurement on the test split")
    found = list(records.values())
    name_variants(found)
    found.sort(key=_order)
    return pd.DataFrame(found)


def _agree(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two values of one measurement agree: counts exactly, others up to rounding."""
    if a["counted"] and b["counted"]:
        return bool(a["correct"] == b["correct"])
    return math.isclose(a["value"], b["value"], abs_tol=TOLERANCE)


def _results(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    if a["counted"] and b["counted"]:
        return f"{a['correct']} and {b['correct']} correct"
    return f"{a['metric']} {a['value']:.6g} and {b['value']:.6g}"


def _has_samples(record: Mapping[str, Any]) -> bool:
    return bool(record["outcomes"] or record["values"])


def _records(row: Row) -> Iterator[dict[str, Any]]:
    model, settings = model_settings(row), attack_settings(row)
    seed, labels = row["config"]["seed"], labels_of(row)
    norm = "" if norm_of(row) is Norm.Linf else str(norm_of(row))
    tested = [found for found in row["measurements"] if found["split"] == "test"]
    n_clean = {
        (metric_of(found), found["n"]): found.get("correct") for found in tested if found["attack"] is None
    }
    for found in tested:
        clean = found["attack"] is None
        # clean accuracy does not depend on the attack or its seed
        chosen = {} if clean else settings | {"seed": str(seed)}
        yield {
            **labels,
            **_measured(row, found),
            "seed": int(model.get("seed", seed)) if clean else seed,
            "attack": "clean" if found["attack"] is None else joined(found["attack"], norm),
            "gradient": found["gradient"] or "",
            "source": found.get("source") or "",
            "eps": found["eps"] or "",
            "eps_value": math.nan if found["eps"] is None else eps_value(row, found["eps"]),
            "seconds": found.get("seconds", math.nan),
            "identity": row["identity"],
            "samples": row.get("datasets", {}).get("test", {}).get("attacked", ""),
            "n_clean": _or_nan(n_clean.get((metric_of(found), found["n"]))),
            "model": without_seeds(model),
            "settings": without_seeds(chosen),
            "network": json.dumps([labels, model], sort_keys=True),
            "attack_settings": json.dumps(chosen, sort_keys=True),
        }


def _measured(row: Row, found: Measurement) -> dict[str, Any]:
    """The columns of the metric: overall and per sample."""
    metric, interval = metric_named(metric_of(found)), found.get("interval")
    return {
        "metric": metric.name,
        "value": value_of(found),
        "counted": is_counted(found),
        "chance": _or_nan(metric.chance(row["n_classes"])),
        "n": found["n"],
        "correct": _or_nan(found.get("correct")),
        "outcomes": found.get("outcomes") or "",
        "values": found.get("values") or "",
        "interval": None if interval is None else (interval[0], interval[1]),
        "found": found.get("found") or [],
        "more": found.get("more") or {},
        "curves": found.get("curves") or {},
        "zero_gradients": _or_nan(found.get("zero_gradients")),
    }


def _or_nan(figure: float | None) -> float:
    return math.nan if figure is None else figure


def interval(seeds: Sequence[Mapping[Hashable, Any]]) -> tuple[float, float]:
    """95 % interval of the mean over seeds, in [0, 1], with respect to the sampling of test samples.

    All seeds share their test samples, which are therefore not pooled. Wilson's interval of the mean count;
    the percentile bootstrap over samples of the mean over seeds; otherwise the mean of the measured
    intervals; NaN if there is none. Wilson's is conservative: the variance of a mean over networks is at most
    that of one network.

    Args:
        seeds: lines of :func:`frame` that differ only in the seed.
    """
    n = seeds[0]["n"]
    if all(seed["counted"] for seed in seeds):
        return wilson(float(np.mean([seed["value"] for seed in seeds])) * n, n)
    if all(seed["values"] for seed in seeds) and len({seed["samples"] for seed in seeds}) == 1:
        return bootstrapped([resampled(seed["values"], n) for seed in seeds])
    known = [seed["interval"] for seed in seeds if seed["interval"] is not None]
    if len(known) < len(seeds):
        return math.nan, math.nan
    low, high = np.mean(known, axis=0)
    return float(low), float(high)


@lru_cache(maxsize=2048)  # 160 MB
def resampled(values: str, n: int) -> npt.NDArray[np.float64]:
    """Means of the bootstrap resamples of packed values; all values of ``n`` samples have the same ones."""
    return resampled_means(unpack_values(values, n)) if n > 1 else np.array([math.nan])


def bootstrapped(means: Sequence[npt.NDArray[np.float64]]) -> tuple[float, float]:
    """95 % interval of the average over seeds, from the resampled means (or differences of means) of each."""
    return percentile_interval(np.mean(means, axis=0))


def by_metric(cells: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each metric and its part of :func:`frame`: accuracy first, then alphabetically."""
    parts = {str(name): part for name, part in cells.groupby("metric", sort=False)}
    for name in sorted(parts, key=metric_rank):
        yield name, parts[name]


def columns_for(cells: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """``columns`` with ``metric`` after ``variant``, unless all measurements are of accuracy."""
    if (cells["metric"] == ACCURACY.name).all():
        return list(columns)
    place = columns.index("variant") + 1
    return [*columns[:place], "metric", *columns[place:]]


def _order(record: Mapping[str, Any]) -> tuple[Any, ...]:
    line = record["backbone"], record["dataset"], rank(record["rule"], RULES), record["scale"]
    variant = record["model_variant"], record["attack_variant"]
    metric, cell = metric_rank(record["metric"]), cell_order(record)
    return metric, *line, coding_rank(record["model"]), *variant, *cell, record["seed"], record["identity"]
