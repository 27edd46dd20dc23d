"""Comparisons of two gradients or two networks on the same samples, with intervals and p."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Mapping
from dataclasses import asdict
from typing import Any

import pandas as pd

from sstune.packing import unpack
from sstune.report.measurements import LINE, bootstrapped, columns_for, resampled
from sstune.report.variants import joined
from sstune.statistics import Pairing, bootstrap_test, difference_interval, mcnemar

POINTS = ["low_points", "high_points"]
GAP = [*LINE, "attack", "eps", "seeds", "n", "rule_gradient", "exact_gradient", "gap_points", *POINTS]
# Columns that two measurements must share to be paired.
SHARED = ["backbone", "dataset", "metric", "seed", "attack_variant", "attack", "eps", "n", "samples"]
COUNTS = ["both", "only_a", "only_b", "neither"]
PAIRED = [
    "backbone", "dataset", "seed", "variant", "attack", "eps", "source", "a", "gradient_a", "b", "gradient_b",
    "n", *COUNTS, "difference_points", *POINTS, "p",
]  # fmt: skip

Record = Mapping[Hashable, Any]


def gap_table(cells: pd.DataFrame) -> pd.DataFrame:
    """Difference of robust accuracy under the rule's and the exact gradient: a line per network, attack and
    eps; columns :data:`GAP`.

    ``rule_gradient`` and ``exact_gradient`` are the metric in [0, 1], means over seeds; ``gap_points`` is
    their difference in percentage points, with a 95 % interval if per-sample results are available. As in the
    long table, the interval is that of the mean over seeds.

    Args:
        cells: :func:`sstune.report.measurements.frame`.
    """
    same = ["network", "attack_settings", "metric", "attack", "eps", "n"]
    exact = cells.loc[cells["gradient"] == "exact", [*same, "value", "outcomes", "values"]]
    pairs = cells[cells["gradient"] == "rule"].merge(exact, on=same, suffixes=("_rule", "_exact"))
    columns = columns_for(cells, GAP)
    lines: list[dict[str, Any]] = []
    for _, seeds in pairs.groupby([*LINE, "metric", "attack", "eps", "n"], sort=False):
        line = {name: seeds[name].iloc[0] for name in columns if name in seeds} | {"seeds": len(seeds)}
        for gradient in ("rule", "exact"):
            line[f"{gradient}_gradient"] = seeds[f"value_{gradient}"].mean()
        gap = line["rule_gradient"] - line["exact_gradient"]
        lines.append(line | _in_points("gap", gap, _interval(seeds)))
    return pd.DataFrame(lines, columns=columns)


def paired_table(cells: pd.DataFrame) -> pd.DataFrame:
    """Paired comparisons of A and B, columns :data:`PAIRED`; empty without per-sample results.

    A and B are two networks of one seed under the same attack and gradient, or one network under the rule's
    and the exact gradient. Counts are of correct samples: in both, in A only, in B only, in neither; empty
    for a metric that is not counted. ``difference_points`` is A minus B in percentage points, with a 95 %
    interval; ``p`` is McNemar's for counts, otherwise that of a paired bootstrap over samples, not corrected
    for multiple comparisons. Clean comparisons use the attacked samples.

    Args:
        cells: :func:`sstune.report.measurements.frame`.
    """
    columns = columns_for(cells, PAIRED)
    cells = cells[((cells["outcomes"] != "") | (cells["values"] != "")) & (cells["samples"] != "")]
    names = [joined(*net) for net in cells[["rule", "scale", "model_variant"]].itertuples(index=False)]
    lines = []
    for _, group in cells.assign(name=names).groupby(SHARED, sort=False):
        pairs = itertools.combinations(group.to_dict("records"), 2)
        lines += [_compared(a, b) for a, b in pairs if _comparable(a, b)]
    found = pd.DataFrame(lines, columns=columns)
    # integers, also with missing values
    return found.astype(dict.fromkeys(COUNTS, "Int64")) if found[COUNTS].isna().any(axis=None) else found


def _interval(seeds: pd.DataFrame) -> tuple[float, float]:
    """95 % interval of the gap of the means over seeds."""
    n = int(seeds["n"].iloc[0])
    outcomes = list(zip(seeds["outcomes_rule"], seeds["outcomes_exact"], strict=True))
    values = list(zip(seeds["values_rule"], seeds["values_exact"], strict=True))
    if all(rule and exact for rule, exact in outcomes):
        pairs = [Pairing.of(unpack(rule, n), unpack(exact, n)) for rule, exact in outcomes]
        only_rule, only_exact = sum(pair.only_a for pair in pairs), sum(pair.only_b for pair in pairs)
        return difference_interval(only_rule / len(pairs), only_exact / len(pairs), n)
    if all(rule and exact for rule, exact in values) and seeds["samples"].nunique() == 1:
        return bootstrapped([resampled(rule, n) - resampled(exact, n) for rule, exact in values])
    return math.nan, math.nan


def _comparable(a: Record, b: Record) -> bool:
    if bool(a["outcomes"]) != bool(b["outcomes"]):
        return False
    if a["network"] == b["network"]:
        return {a["gradient"], b["gradient"]} == {"rule", "exact"}
    return a["name"] != b["name"] and (a["gradient"], a["source"]) == (b["gradient"], b["source"])


def _compared(a: Record, b: Record) -> dict[str, Any]:
    line = {name: a[name] for name in [*PAIRED, "metric"] if name in a} | {"variant": a["attack_variant"]}
    line |= {"a": a["name"], "gradient_a": a["gradient"], "b": b["name"], "gradient_b": b["gradient"]}
    if a["outcomes"]:
        pair = Pairing.of(unpack(a["outcomes"], a["n"]), unpack(b["outcomes"], b["n"]))
        interval = difference_interval(pair.only_a, pair.only_b, pair.n)
        line |= asdict(pair) | _in_points("difference", pair.difference, interval)
        return line | {"p": mcnemar(pair.only_a, pair.only_b)}
    differences = resampled(a["values"], a["n"]) - resampled(b["values"], b["n"])
    line |= _in_points("difference", a["value"] - b["value"], bootstrapped([differences]))
    return line | {"p": bootstrap_test(differences)}


def _in_points(name: str, difference: float, interval: tuple[float, float]) -> dict[str, float]:
    low, high = interval
    return {f"{name}_points": 100 * difference, "low_points": 100 * low, "high_points": 100 * high}
