"""Load a command's images, and compare them with those of the interrupted run and of the source's run.

A run's identity holds the configuration of its data and a fingerprint of the user's files. The digests of the
splits detect other changes: another version of a package's files, or edited images in torchvision's folders.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from sstune import backbones, datasets, tasks
from sstune.commands.lineage import Source
from sstune.identity import semantic
from sstune.row import DatasetsEntry, SplitEntry
from sstune.runs import RECORD, SPLIT, STATE, Run
from sstune.schema import RunConfig
from sstune.schema.keys import Role, keys_of
from sstune.storage import write_bytes, write_json


def load(run: Run, source: Source | None, first: bool = True) -> datasets.Splits:
    """The splits of ``run``'s dataset, with a remark if their images differ from those of ``source``'s run.

    State that was saved on other images is renamed to ``previous.*``, and the run starts from scratch.

    Args:
        first: whether this is the process that writes to the run's directory.
    """
    config = run.config
    data = arranged(config)
    said = described(data)
    if first:
        _put_aside_if_other(run, said)
        if data.indices is not None:
            _write_indices(run.directory / SPLIT, data.indices)
    return replace(data, remarks=[*data.remarks, *_differences(run, source, said)])


def _write_indices(path: Path, indices: Mapping[str, Tensor]) -> None:
    """The positions of each split's images in the dataset (train, val, test), int64, by the split's name."""
    file = io.BytesIO()
    arrays: dict[str, Any] = {name: index.numpy() for name, index in indices.items()}
    np.savez_compressed(file, **arrays)
    write_bytes(path, file.getbuffer())


def arranged(config: RunConfig) -> datasets.Splits:
    """The splits of a configuration's dataset, as its task needs them."""
    searches = getattr(tasks.TASKS[config.task.name], "searches", False)
    preprocessing = backbones.preprocessing(config.backbone)
    split = config.split if searches else None
    return datasets.load(config.dataset, preprocessing, config.workers, split)


def described(data: datasets.Splits) -> DatasetsEntry:
    """The number of images of each split, and their digest; the database only if there is one."""
    entries: DatasetsEntry = {"train": entry(data.train), "val": entry(data.val), "test": entry(data.test)}
    if data.database is not None:
        entries["database"] = entry(data.database)
    return entries


def entry(split: datasets.Split) -> SplitEntry:
    """The number of images of a split, and their digest."""
    return {"n": len(split), "digest": split.digest}


def _put_aside_if_other(run: Run, said: DatasetsEntry) -> None:
    path = run.directory / RECORD
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:  # a new run, or one of a version without this file
        before = said
    except ValueError:
        before = None  # damaged: the images of the state are unknown
    for name in STATE if before != said else ():
        state = run.directory / name
        if state.exists():
            os.replace(state, state.with_name(f"previous.{name}"))
            print(f"  {state} was saved on other images; renamed to previous.{name}", flush=True)
    write_json(path, said)


def _differences(run: Run, source: Source | None, said: DatasetsEntry) -> list[str]:
    """A remark if splits of the same configuration differ from those of the source's run."""
    if source is None or source.config is None:
        return []
    for_retrieval = "database" in {**source.datasets, **said}
    if for_retrieval and run.config.task.name != source.config.task.name:  # splits of another kind
        return []
    compared: list[Literal["train", "val", "test", "database"]] = ["train", "val", "test", "database"]
    # these do not change the images of a split
    treated: tuple[Role, ...] = (Role.AUGMENTATION, Role.NORMALIZATION)
    if _without(run.config, *treated) != _without(source.config, *treated):
        compared.remove("train")
        treated = (*treated, Role.SUBSET)
    if _without(run.config, *treated) != _without(source.config, *treated):  # another dataset on purpose
        return []
    before = source.datasets
    other = [
        name
        for name in compared
        if name in before and name in said and before[name]["digest"] != said[name]["digest"]
    ]
    if not other:
        return []
    return [
        f"the {' and '.join(other)} images are not those of {source.path.parent.name},"
        " which this run starts from: what it learnt from may be tested here"
    ]


def _without(config: RunConfig, *roles: Role) -> dict[str, Any]:
    """The keys of the images that are part of the identity, without those of ``roles``."""
    keys, values = keys_of(type(config.dataset)), semantic(config)
    dataset = {key: value for key, value in values["dataset"].items() if keys[key].role not in roles}
    return {"dataset": dataset, "split": values.get("split")}
