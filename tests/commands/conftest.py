"""Runs that several commands' tests look at."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from sstune.cli import main


class Chain(NamedTuple):
    """The finished runs of one ``sstune attack`` without ``init_from``."""

    line: list[str]
    train: Path
    finetune: Path
    attack: Path


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """``sstune attack`` without ``init_from``, on 144 training images."""
    out = tmp_path_factory.mktemp("chain")
    data = ["dataset.test_fraction=0.9", "dataset.val_fraction=0.2", "threads=1", "device=cpu", f"out={out}"]
    recipe = ["epochs=1", "batch_size=72", "optimizer.lr=0.03"]
    limits = ["attack=fgsm", "attack.n=40", "attack.eps=[8/255]"]
    line = ["attack", *data, *recipe, *limits]
    assert main(line) == 0
    runs = []
    for command in ("train", "finetune", "attack"):
        (run,) = (out / command).iterdir()
        runs.append(run)
    return Chain(line, *runs)
