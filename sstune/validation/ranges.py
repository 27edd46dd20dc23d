"""The range of each number."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

# key -> (smallest allowed, largest allowed, whether the smallest itself is excluded); of a list or a mapping,
# for each of its numbers
RANGES: dict[str, tuple[float, float, bool]] = {
    "epochs": (1, 1e6, False),
    "batch_size": (1, 1e6, False),
    "threads": (1, 1024, False),
    "clip_norm": (0, math.inf, True),
    "workers": (0, 1024, False),
    "accumulate": (1, 1e6, False),
    "ema": (0, 0.999999, True),
    "patience": (1, 1e6, False),
    "seed": (0, 2**32 - 1, False),
    "dataset.mean": (-1e3, 1e3, False),
    "dataset.std": (0, 1e3, True),
    "dataset.crop_padding": (0, 1024, False),
    "dataset.val_fraction": (0, 0.9, True),
    "dataset.test_fraction": (0, 0.9, True),
    "dataset.image_size": (1, 4096, False),
    "dataset.crop_scale": (0, 1, True),
    "dataset.crop_pct": (0, 1, True),
    "dataset.cutout": (0, 4096, False),
    "dataset.train_n": (2, math.inf, False),
    "dataset.shots": (1, math.inf, False),
    "dataset.subset_seed": (0, 2**32 - 1, False),
    "task.label_smoothing": (0, 0.999, False),
    "attack.n": (1, math.inf, False),
    "attack.batch_size": (1, 1e6, False),
    "attack.steps": (1, 1e6, False),
    "attack.restarts": (1, 1e6, False),
    "attack.decay": (0, 1e3, False),
    "attack.eot": (1, 1e6, False),
    "attack.queries": (1, 1e9, False),
    "attack.attempts": (1, 1e6, False),
    "attack.save_images": (0, 1e6, False),
    "audit.black_box_n": (1, math.inf, False),
    "audit.square_queries": (1, 1e9, False),
    "audit.label_n": (1, math.inf, False),
    "audit.label_queries": (1, 1e9, False),
    "optimizer.lr": (0, math.inf, True),
    "optimizer.lr_factors": (0, math.inf, True),
    "optimizer.betas": (0, 0.999999999, False),
    "optimizer.weight_decay_milestones": (1, 1e6, False),
    "optimizer.weight_decay": (0, math.inf, False),
    "optimizer.momentum": (0, 0.99999, False),
    "optimizer.weight_decay_gamma": (0, math.inf, False),
    "rule.rate": (0, 1, True),
    "rule.decay": (0, 1, True),
    "rule.samples": (1, 1e6, False),
    "rule.expansion": (0, 1000, True),
    "rule.density": (0, 1, True),
    "backbone.hidden": (1, 2**20, False),
    "backbone.patch_size": (1, 1024, False),
    "backbone.input_size": (8, 4096, False),
    "dataset.padding": (0, 1024, False),
    "schedule.warmup_epochs": (0, 1e6, False),
    "schedule.final_factor": (0, 1, False),
    "schedule.milestones": (1, 1e6, False),
    "schedule.gamma": (0, 1, True),
}


def out_of_range(values: Mapping[str, list[Any]]) -> Iterator[str]:
    """Every number outside :data:`RANGES` and every one that is not finite, as ``key: what was expected``.

    Args:
        values: key -> what it holds, as :func:`sstune.validation.leaves.leaves` finds it.
    """
    for key, held in values.items():
        low, high, open_below = RANGES.get(key, (-math.inf, math.inf, False))
        for value in held:
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if isinstance(value, float) and not math.isfinite(value):
                yield f"{key}: {value} is out of range, expected a finite number"
            elif value < low or value > high or (open_below and value == low):
                bounds = f"{'>' if open_below else '>='} {low:g}"
                if high < 1e6 or value > high:
                    bounds += f" and <= {high:.10g}"
                yield f"{key}: {_number(value)} is out of range, expected {bounds}"


def _number(value: float) -> str:
    try:
        return f"{value:.10g}"
    except OverflowError:  # an int beyond any float
        return (
            f"a number of some {round(math.log10(value))} digits" if value > 0 else "a number below any float"
        )
