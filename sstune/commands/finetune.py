"""``sstune finetune``: go on from trained weights, with the backward pass of a learning rule."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sstune import datasets
from sstune.commands.execution import once
from sstune.commands.source import default_parent, inherit, open_source
from sstune.commands.train import learn, train
from sstune.runs import Run
from sstune.schema import RunConfig


def finetune(config: RunConfig, asked: set[str]) -> Run:
    """Fine-tune the network of ``init_from``, or of ``sstune train``'s default run, made first if need be.

    A run's backbone, dataset and task are kept unless the command line asks for others.
    """
    if config.init_from is None:
        parent = train(default_parent(config), set())
        config = replace(config, init_from=str(parent.directory))
    source = open_source(Path(str(config.init_from)))
    config = inherit(config, source, asked, ("backbone", "dataset", "task"))
    run = Run(config, source.lineage, datasets.fingerprint(config.dataset))
    once(run, lambda run, device, stop: learn(run, source, device, stop))
    return run
