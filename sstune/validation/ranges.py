"""The range of each number."""

from __future__ import annotations

from collections.abc import Iterator

from sstune.schema import RunConfig

# key -> (smallest allowed, largest allowed, whether the smallest itself is excluded)
RANGES: dict[str, tuple[float, float, bool]] = {
    "epochs": (1, 1e6, False),
    "batch_size": (1, 1e6, False),
    "threads": (1, 1024, False),
    "clip_norm": (0, float("inf"), True),
    "workers": (0, 1024, False),
    "accumulate": (1, 1e6, False),
    "ema": (0, 0.999999, True),
    "patience": (1, 1e6, False),
    "seed": (0, 2**32 - 1, False),
    "dataset.crop_padding": (0, 1024, False),
    "dataset.val_fraction": (0, 0.9, True),
    "dataset.test_fraction": (0, 0.9, True),
    "dataset.image_size": (1, 4096, False),
    "dataset.crop_scale": (0, 1, True),
    "dataset.crop_pct": (0, 1, True),
    "dataset.cutout": (0, 4096, False),
    "dataset.train_n": (2, float("inf"), False),
    "dataset.shots": (1, float("inf"), False),
    "dataset.subset_seed": (0, 2**32 - 1, False),
    "task.label_smoothing": (0, 0.999, False),
    "attack.n": (1, float("inf"), False),
    "attack.batch_size": (1, 1e6, False),
    "attack.steps": (1, 1e6, False),
    "attack.restarts": (1, 1e6, False),
    "attack.decay": (0, 1e3, False),
    "attack.eot": (1, 1e6, False),
    "attack.queries": (1, 1e9, False),
    "attack.attempts": (1, 1e6, False),
    "attack.save_images": (0, 1e6, False),
    "audit.black_box_n": (1, float("inf"), False),
    "audit.square_queries": (1, 1e9, False),
    "audit.label_n": (1, float("inf"), False),
    "audit.label_queries": (1, 1e9, False),
    "optimizer.lr": (0, float("inf"), True),
    "optimizer.weight_decay": (0, float("inf"), False),
    "optimizer.momentum": (0, 0.99999, False),
    "optimizer.weight_decay_gamma": (0, float("inf"), False),
    "rule.rate": (0, 1, True),
    "rule.decay": (0, 1, True),
    "rule.samples": (1, 1e6, False),
    "rule.expansion": (0, 1000, True),
    "rule.density": (0, 1, True),
    "backbone.patch_size": (1, 1024, False),
    "backbone.input_size": (8, 4096, False),
    "dataset.padding": (0, 1024, False),
    "schedule.warmup_epochs": (0, 1e6, False),
    "schedule.final_factor": (0, 1, False),
    "schedule.gamma": (0, 1, True),
}


def out_of_range(config: RunConfig) -> Iterator[str]:
    """Every number outside :data:`RANGES`, as ``key: what was expected``."""
    for key, (low, high, open_below) in RANGES.items():
        section, _, name = key.rpartition(".")
        owner = getattr(config, section) if section else config
        value = getattr(owner, name, None)
        if not isinstance(value, int | float):
            continue
        if value < low or value > high or (open_below and value == low) or value != value:
            bounds = f"{'>' if open_below else '>='} {low:g}"
            if high < 1e6 or value > high:
                bounds += f" and <= {high:.10g}"
            yield f"{key}: {value:.10g} is out of range, expected {bounds}"
