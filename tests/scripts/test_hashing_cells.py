"""The command lines of ``make reproduce-hashing`` compose, differ, and belong together."""

from __future__ import annotations

import runpy
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from sstune.commands.lineage import make_run
from sstune.composition import cells
from sstune.schema import RunConfig

script: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "hashing_cells.py"))
ROOT = ["experiment=hashing_cifar10_jpeg", "dataset.root=."]


def composed(command: str, line: str) -> list[RunConfig]:
    return [cell.request.config for cell in cells(command, [*ROOT, *line.split()])]


def split_at_source(line: str) -> tuple[str, str]:
    """A line without its init_from, and the pattern of that."""
    words = line.split()
    (source,) = [word for word in words if word.startswith("init_from=")]
    return " ".join(word for word in words if word != source), source.removeprefix("init_from=")


@pytest.mark.parametrize("loss", script["LOSSES"])
def test_every_network_is_made_once_and_attacked_by_every_attack(loss: str) -> None:
    seeds = script["SEEDS"].get(loss, (0,))
    lines = [line for seed in seeds for line in script["finetunings"](loss, seed)]
    runs = [make_run(config, []) for line in lines for config in composed("finetune", line)]
    assert len({run.identity for run in runs}) == len(runs) == 8 * len(seeds)
    assert {getattr(run.config.task, "loss", None) for run in runs} == {loss}
    for seed in seeds:
        attacks = [split_at_source(line) for line in script["attacks"](loss, seed)]
        for run in runs:
            found = [line for line, pattern in attacks if fnmatchcase(str(run.directory), pattern)]
            names = [line.partition("attack=")[2].split()[0] for line in found]
            expected = ["noise", "mainstay", "hag", "hag_sign", "sdha", "pgd"]
            assert names == (expected if run.config.seed == seed else [])


def test_attacks_compose() -> None:
    for line in {split_at_source(line)[0] for line in [*script["attacks"]("csq", 0), *script["longer"]()]}:
        for config in composed("attack", line):
            assert config.task.name == "hashing"
            assert config.attack.n is not None


def test_the_first_seed_of_every_loss_comes_first() -> None:
    seeds = [seed for _, seed in script["groups"]()]
    assert seeds == sorted(seeds)
    assert len(seeds) == len(set(script["groups"]())) == 7
