"""What two gradients, or two networks, make of the same samples: the masking gap, and McNemar's test."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

import pandas as pd

from sstune.packing import unpack
from sstune.report.measurements import LINE, frame
from sstune.report.rows import Row
from sstune.report.variants import joined
from sstune.statistics import Pairing, difference_interval, mcnemar

POINTS = ["low_points", "high_points"]
GAP = [*LINE, "attack", "eps", "seeds", "n", "rule_gradient", "exact_gradient", "gap_points", *POINTS]
# What two measurements must share to be paired.
SHARED = ["backbone", "dataset", "seed", "attack_variant", "attack", "eps", "n", "samples"]
PAIRED = [
    "backbone", "dataset", "seed", "variant", "attack", "eps", "source", "a", "gradient_a", "b", "gradient_b",
    "n", "both", "only_a", "only_b", "neither", "difference_points", *POINTS, "p",
]  # fmt: skip

Record = Mapping[Hashable, Any]


def gap_table(rows: Iterable[Row]) -> pd.DataFrame:
    """How much of a network's robustness the rule's gradient feigns: a line per net, attack and eps.

    ``rule_gradient`` and ``exact_gradient`` are accuracies in [0, 1], means over seeds; ``gap_points`` is
    their difference in percentage points, with a 95 % interval where it is known which samples stayed right.
    All seeds are measured on the same samples: as in the long table, the interval is that of mean counts.
    """
    cells = frame(rows)
    same = ["network", "manner", "attack", "eps", "n"]
    exact = cells.loc[cells["gradient"] == "exact", [*same, "accuracy", "outcomes"]]
    pairs = cells[cells["gradient"] == "rule"].merge(exact, on=same, suffixes=("_rule", "_exact"))
    lines: list[dict[str, Any]] = []
    for _, seeds in pairs.groupby([*LINE, "attack", "eps", "n"], sort=False):
        line = {name: seeds[name].iloc[0] for name in GAP if name in seeds} | {"seeds": len(seeds)}
        for gradient in ("rule", "exact"):
            line[f"{gradient}_gradient"] = seeds[f"accuracy_{gradient}"].mean()
        gap = line["rule_gradient"] - line["exact_gradient"]
        lines.append(line | _in_points("gap", gap, _interval(seeds)))
    return pd.DataFrame(lines, columns=GAP)


def paired_table(rows: Iterable[Row]) -> pd.DataFrame:
    """Two ways compared on the same samples, columns :data:`PAIRED`; empty where no outcomes are kept.

    A and B are two networks of one seed, attacked alike through one gradient, or one network under the rule's
    and the exact gradient. Counts are of samples that stayed right: in both ways, in A or B only, in neither.
    ``difference_points`` is A's accuracy less B's in percentage points, with a 95 % interval; ``p`` is
    McNemar's, not corrected for the number of comparisons. Clean is the accuracy of the attacked samples.
    """
    cells = frame(rows)
    cells = cells[(cells["outcomes"] != "") & (cells["samples"] != "")]
    names = [joined(*net) for net in cells[["rule", "scale", "model_variant"]].itertuples(index=False)]
    lines = []
    for _, group in cells.assign(name=names).groupby(SHARED, sort=False):
        pairs = itertools.combinations(group.to_dict("records"), 2)
        lines += [_compared(a, b) for a, b in pairs if _comparable(a, b)]
    return pd.DataFrame(lines, columns=PAIRED)


def _interval(seeds: pd.DataFrame) -> tuple[float, float]:
    """95 % interval of the gap; of mean counts if there are several seeds."""
    n, columns = int(seeds["n"].iloc[0]), (seeds["outcomes_rule"], seeds["outcomes_exact"])
    if not all(column.all() for column in columns):
        return math.nan, math.nan
    found = [Pairing.of(unpack(rule, n), unpack(exact, n)) for rule, exact in zip(*columns, strict=True)]
    only_rule, only_exact = (sum(pair.only_a for pair in found), sum(pair.only_b for pair in found))
    return difference_interval(only_rule / len(found), only_exact / len(found), n)


def _comparable(a: Record, b: Record) -> bool:
    if a["network"] == b["network"]:
        return {a["gradient"], b["gradient"]} == {"rule", "exact"}
    return a["name"] != b["name"] and (a["gradient"], a["source"]) == (b["gradient"], b["source"])


def _compared(a: Record, b: Record) -> dict[str, Any]:
    pair = Pairing.of(unpack(a["outcomes"], a["n"]), unpack(b["outcomes"], b["n"]))
    line = {name: a[name] for name in PAIRED if name in a} | {"variant": a["attack_variant"]}
    line |= {"a": a["name"], "gradient_a": a["gradient"], "b": b["name"], "gradient_b": b["gradient"]}
    interval = difference_interval(pair.only_a, pair.only_b, pair.n)
    line |= asdict(pair) | _in_points("difference", pair.difference, interval)
    return line | {"p": mcnemar(pair.only_a, pair.only_b)}


def _in_points(name: str, difference: float, interval: tuple[float, float]) -> dict[str, float]:
    low, high = interval
    return {f"{name}_points": 100 * difference, "low_points": 100 * low, "high_points": 100 * high}
