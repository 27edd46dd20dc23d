"""Command lines that tests run on the pretended GPU, on few of the embedded digits."""

from __future__ import annotations

from typing import Any

DATA = ["dataset.test_fraction=0.1", "dataset.val_fraction=0.05", "dataset.train_n=48", "threads=1"]
RECIPE = ["epochs=1", "batch_size=16", "dataset.crop_padding=1"]
MLP = [*DATA, *RECIPE, "backbone=mlp", "backbone.hidden=[32]"]
RESNET = [*DATA, *RECIPE, "backbone=resnet20"]


def sstune(*words: str, **besides: Any) -> dict[str, Any]:
    """A request to drive.py."""
    return {"line": ["sstune", *words], **besides}
