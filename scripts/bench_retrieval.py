"""Cost of ranking by binary codes: ``python scripts/bench.py retrieval``.

Random codes in ten clusters, as those of ten classes. Measured are, with one line each,

    average precision       expected AP of all items
    all metrics             what ``rank`` computes by default; K of AP: all items
    all metrics, K          the same with K = 1000
    all metrics, labels     the same as ``all metrics`` with 21 labels an image, and so with NDCG
    refined order           AP of the refined order alone, K = 1000
    nearest                 the 1000 nearest items, ties by index
    faiss                   the same by ``IndexBinaryFlat``, if faiss is installed

for ``--queries`` in a database of ``--items``, and for 100 queries in one of ``--many``. Within a round all
take turns. Time is the CPU time of the process with all its threads, in seconds, median over rounds.
``over_faiss`` is the median ratio to faiss of the same round. Memory is the most that NumPy and Python
allocate during a call beyond codes and labels, in MB; tables and words that are kept for later calls are
counted. ``bar`` is the largest CPU time that is accepted, for ``nearest`` that of faiss. ``within`` says
whether it is kept and, with ``--many`` items, whether memory is at most 200 MB.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from sstune.retrieval import (
    Codes,
    Labels,
    RankSettings,
    average_precision,
    nearest,
    rank,
    tie_aware,
    to_faiss,
)

CLASSES, LABELS, TOP = 10, 21, 1000
FEW_QUERIES = 100
BAR, MANY_BAR, MANY_BAR_MB = 1.0, 2.0, 200.0  # CPU seconds, MB


class Sides:
    """Queries and a database, drawn at random."""

    def __init__(self, queries: int, items: int, bits: int) -> None:
        self.draw = torch.Generator().manual_seed(0)
        centres = torch.randn(CLASSES, bits, generator=self.draw)
        self.settings = RankSettings()
        self.outputs, self.codes, self.labels, self.several = [], [], [], []
        for n in (queries, items):
            classes = torch.randint(CLASSES, (n,), generator=self.draw)
            outputs = centres[classes] + 1.5 * torch.randn(n, bits, generator=self.draw)
            self.outputs.append(outputs)
            self.codes.append(Codes.of(outputs))
            self.labels.append(Labels.of(classes))
            self.several.append(Labels.of(self.traits(classes)))

    def traits(self, classes: Tensor) -> Tensor:
        """(N, 21) bool, the class's label and about one of the others in ten."""
        hot = torch.rand(len(classes), LABELS, generator=self.draw) < 0.1
        return hot.scatter(1, classes[:, None], True)

    def rank(self, labels: list[Labels] | None = None, **changed: Any) -> object:
        (queries, database), (own, theirs) = self.codes, labels or self.labels
        return rank(queries, own, database, theirs, replace(self.settings, **changed))

    def average_precision(self) -> object:
        (queries, database), (own, theirs) = self.codes, self.labels
        return average_precision(queries, own, database, theirs)

    def contenders(self) -> dict[str, Callable[[], object]]:
        """What is measured, by name."""
        outputs = (self.outputs[0], self.outputs[1])
        found: dict[str, Callable[[], object]] = {
            "average precision": self.average_precision,
            "all metrics": self.rank,
            "all metrics, K": lambda: self.rank(top=TOP),
            "all metrics, labels": lambda: self.rank(self.several),
            "refined order": lambda: self.rank(top=TOP, stable=False, outputs=outputs),
            "nearest": lambda: nearest(self.codes[0], self.codes[1], TOP),
        }
        if importlib.util.find_spec("faiss"):
            import faiss

            (queries, database), threads = self.codes, torch.get_num_threads()
            faiss.omp_set_num_threads(threads)
            index = to_faiss(database)
            found["faiss"] = lambda: index.search(queries.packed, min(TOP, len(database)))
        return found


def cpu_seconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def peak_mb(call: Callable[[], object], sides: Sides) -> float:
    """The most that a call allocates, when nothing is kept from earlier calls."""
    tie_aware.harmonic_numbers.cache_clear()
    sides.codes = [Codes(codes.packed, codes.bits) for codes in sides.codes]
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def measure_sides(sides: Sides, rounds: int, many: bool) -> list[dict[str, object]]:
    """One line for each contender."""
    contenders = sides.contenders()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            seconds[name].append(cpu_seconds(call))
    median = {name: statistics.median(each) for name, each in seconds.items()}
    bars = {"all metrics": MANY_BAR if many else BAR}
    if "faiss" in median:
        bars["nearest"] = median["faiss"]
    lines = []
    for name, call in contenders.items():
        line: dict[str, object] = {
            "what": name,
            "queries": len(sides.codes[0]),
            "items": len(sides.codes[1]),
            "bits": sides.codes[0].bits,
            "cpu_seconds": round(median[name], 4),
        }
        if "faiss" in seconds:
            ratios = [own / other for own, other in zip(seconds[name], seconds["faiss"], strict=True)]
            line["over_faiss"] = round(statistics.median(ratios), 3)
        if name != "faiss":
            line["peak_mb"] = peak = round(peak_mb(call, sides), 1)
            bar_mb = MANY_BAR_MB if many and name == "all metrics" else float("inf")
            if name in bars:
                line |= {"bar": round(bars[name], 4), "within": median[name] < bars[name] and peak <= bar_mb}
        lines.append(line)
    return lines


def measure(arguments: argparse.Namespace) -> pd.DataFrame:
    """See the module's docstring."""
    lines = measure_sides(Sides(arguments.queries, arguments.items, arguments.bits), arguments.rounds, False)
    lines += measure_sides(Sides(FEW_QUERIES, arguments.many, arguments.bits), arguments.rounds, True)
    frame = pd.DataFrame(lines)
    frame["rounds"], frame["threads"] = arguments.rounds, torch.get_num_threads()
    return frame
