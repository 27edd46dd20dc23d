"""The commands that faults meet, each small, and what they find in their folder."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from children import NO_FAULT, Change, Child, Ended, Fault
from contents import contents

DATA = ["dataset.test_fraction=0.8", "dataset.val_fraction=0.2", "threads=1", "device=cpu"]
NET = ["backbone=mlp", "backbone.hidden=[16]"]
EPOCH = ["epochs=1", "batch_size=64", "optimizer.lr=0.05"]
TRAIN = ["train", *DATA, *NET, *EPOCH]
EVERY_STEP = {
    "sstune.training.engine.SAVE_EVERY": 0.0
}  # a checkpoint at each step instead of every ten minutes
PGD = ["attack=pgd", "attack.steps=3", "attack.n=40", "attack.batch_size=20", "attack.eps=[8/255,32/255]"]
AUDIT = [
    "attack=audit", "attack.n=40", "attack.eps=[32/255]", "audit.black_box_n=20", "audit.label_n=10",
    "audit.square_queries=20", "audit.label_queries=30", "threads=1", "device=cpu", "attack.save_images=2",
]  # fmt: skip
JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


@dataclass
class Scene:
    """A command line, in a folder that holds what ``before`` holds.

    ``undisturbed`` and ``after`` are how it ends, and what is there then, if nothing comes in its way;
    ``changed`` and ``everywhere`` are :class:`children.Child`'s.
    """

    name: str
    line: list[str]
    before: Path
    changed: dict[str, Any] = field(default_factory=dict)
    everywhere: bool = False
    undisturbed: Ended = field(init=False)
    after: dict[str, str] = field(init=False)

    def folder(self, place: Path) -> Path:
        """A fresh folder for the command, below ``place``."""
        folder = place / "folder"
        shutil.copytree(self.before, folder, copy_function=shutil.copy)
        return folder

    def start(self, folder: Path, fault: Fault = NO_FAULT) -> Child:
        """The command at work in ``folder``."""
        return Child(self.line, folder, fault, self.changed, self.everywhere)

    def run_undisturbed(self, place: Path) -> None:
        """Find out how it ends."""
        folder = self.folder(place)
        self.undisturbed = self.start(folder).wait()
        if self.undisturbed.status:
            raise RuntimeError(f"{self.name}: {self.undisturbed.err}")
        self.after = contents(folder)

    @property
    def changes(self) -> list[Change]:
        """Of files, in the order in which the one process makes them."""
        return [change for change in self.undisturbed.changes if change.operation != "done"]


def prepared(place: Path) -> dict[str, Path]:
    """Folders of finished runs: a network, its attack, and everything that a report shows."""
    empty = place / "empty"
    empty.mkdir(parents=True)
    trained = made(empty, place / "trained", [*TRAIN])
    source = source_of(trained)
    surrogate = made(trained, place / "surrogate", [*TRAIN, "seed=1"])
    attacked = made(trained, place / "attacked", ["attack", *PGD, f"init_from={source}", "rule=usf"])
    finetuned = ["finetune", *DATA, *EPOCH, f"init_from={source}", "rule=brsf"]
    reported = made(attacked, place / "reported", finetuned, ["report", "runs", "--out", "results/tables"])
    more = ["attack", *PGD, f"init_from={source}", "rule=fa"]  # so that each table has to change
    reported = made(reported, place / "more", more, [*finetuned[:-1], "rule=usf"])
    swept = made(empty, place / "swept", [*TRAIN, "-m", "seed=0,1"])
    other = made(swept, place / "other", ["report", "runs", "--out", "other"])
    shutil.copytree(other / "other", reported / "other")
    return {
        "empty": empty,
        "trained": trained,
        "surrogate": surrogate,
        "attacked": attacked,
        "reported": reported,
        "swept": swept,
    }


def made(before: Path, folder: Path, *lines: Sequence[str]) -> Path:
    """``folder``, a copy of ``before`` in which these command lines were run."""
    shutil.copytree(before, folder / "folder")
    for line in lines:
        ended = Child(line, folder / "folder").wait()
        if ended.status:
            raise RuntimeError(f"sstune {' '.join(line)}: {ended.err}")
    return folder / "folder"


def source_of(folder: Path) -> Path:
    """The one trained run below ``folder``, relative to it."""
    (run,) = folder.glob("runs/train/*-s0-*")
    return run.relative_to(folder)


def scenes(found: dict[str, Path]) -> dict[str, Scene]:
    """Every command, by name, over the prepared folders."""
    source = f"init_from={source_of(found['trained'])}"
    (other,) = found["surrogate"].glob("runs/train/*-s1-*")
    surrogate = f"audit.surrogate={other.relative_to(found['surrogate'])}"
    attack = ["attack", *PGD, source, "rule=usf"]
    finetune = ["finetune", *DATA, *EPOCH, "epochs=2", source, "rule=brsf"]
    report = ["report", "runs", "other/rows.jsonl", "--out", "results/tables"]
    sweep = [*TRAIN, "-m", "seed=0,1"]
    chain = ["finetune", *DATA, *NET, *EPOCH, "-m", "rule=usf,frsf"]
    every = [
        Scene("train", [*TRAIN, "epochs=2", "rule=usf"], found["empty"], EVERY_STEP),
        Scene("finetune", finetune, found["trained"], EVERY_STEP),
        Scene("attack", [*attack, "attack.save_images=2"], found["trained"]),
        Scene("audit", ["attack", *AUDIT, source, "rule=usf", surrogate], found["surrogate"]),
        Scene("sweep", chain, found["empty"]),
        Scene("report", report, found["reported"]),
        Scene("train force", [*TRAIN, "force=true"], found["trained"], EVERY_STEP),
        Scene("attack force", [*attack, "force=true"], found["attacked"]),
        Scene("sweep force", [*sweep, "force=true"], found["swept"]),
        Scene("sweep joblib", [*sweep, *JOBLIB], found["empty"], everywhere=True),
    ]
    return {scene.name: scene for scene in every}
