"""The images of a command, compared with those that its run began with and those that its weights come from.

A run's identity holds the configuration of its data, and the fingerprint of one's own files. What neither
notices (another version of a package's files, images edited below torchvision's folders, a tree that got
another fingerprint as well) the digests of the splits do.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any, Literal

from sstune import backbones, datasets
from sstune.commands.lineage import Source
from sstune.identity import semantic
from sstune.row import DatasetsEntry, SplitEntry
from sstune.runs import RECORD, STATE, Run
from sstune.schema import RunConfig
from sstune.schema.keys import Role, keys_of
from sstune.storage import write_json


def load(run: Run, source: Source | None, first: bool = True) -> datasets.Splits:
    """The splits of ``run``'s dataset; remarks on them say where they are not those of ``source``'s run.

    State that was saved on other images is put aside: the run starts anew.

    Args:
        first: whether this process, of several, looks after the run's directory.
    """
    config = run.config
    data = datasets.load(config.dataset, backbones.preprocessing(config.backbone), config.workers)
    said = described(data)
    if first:
        _put_aside_if_other(run, said)
    return replace(data, remarks=[*data.remarks, *_differences(run, source, said)])


def described(data: datasets.Splits) -> DatasetsEntry:
    """The number of images of each split, and their digest."""
    return {"train": _entry(data.train), "val": _entry(data.val), "test": _entry(data.test)}


def _entry(split: datasets.Split) -> SplitEntry:
    return {"n": len(split), "digest": split.digest}


def _put_aside_if_other(run: Run, said: DatasetsEntry) -> None:
    path = run.directory / RECORD
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:  # a new run, or one of before there was the file
        before = said
    except ValueError:
        before = None  # damaged: nobody knows what the state was saved on
    for name in STATE if before != said else ():
        state = run.directory / name
        if state.exists():
            os.replace(state, state.with_name(f"previous.{name}"))
            print(f"  {state} was saved on other images: put aside as previous.{name}", flush=True)
    write_json(path, said)


def _differences(run: Run, source: Source | None, said: DatasetsEntry) -> list[str]:
    """A line if splits of the same configuration hold other images here than for the source's run."""
    if source is None or source.config is None:
        return []
    compared: list[Literal["train", "val", "test"]] = ["train", "val", "test"]
    treated: tuple[Role, ...] = (
        Role.AUGMENTATION,
        Role.NORMALIZATION,
    )  # they leave the images of a split as they are
    if _without(run.config, *treated) != _without(source.config, *treated):
        compared.remove("train")
        treated = (*treated, Role.SUBSET)
    if _without(run.config, *treated) != _without(
        source.config, *treated
    ):  # another dataset, and meant to be
        return []
    before = source.datasets
    other = [name for name in compared if name in before and before[name]["digest"] != said[name]["digest"]]
    if not other:
        return []
    return [
        f"the {' and '.join(other)} images are not those of {source.path.parent.name},"
        " which this run starts from: what it learnt from may be tested here"
    ]


def _without(config: RunConfig, *roles: Role) -> dict[str, Any]:
    """The semantic keys of the dataset, without those of some roles."""
    keys = keys_of(type(config.dataset))
    return {key: value for key, value in semantic(config)["dataset"].items() if keys[key].role not in roles}
