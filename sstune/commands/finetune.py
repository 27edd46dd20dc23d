"""``sstune finetune``: go on from trained weights, with the backward pass of a learning rule."""

from __future__ import annotations

from sstune.commands.execution import once
from sstune.commands.source import default_parent, descend
from sstune.commands.train import learn, train
from sstune.runs import Run
from sstune.schema import RunConfig


def finetune(config: RunConfig, asked: set[str], wait: bool = False) -> Run:
    """Fine-tune the network of ``init_from``, or of ``sstune train``'s default run, made first if need be.

    A run's backbone, dataset and task are kept unless the command line asks for others. With ``wait``, for
    another process that is at work on it.
    """
    parent = train(default_parent(config), set(), wait=True) if config.init_from is None else None
    run, source = descend(config, asked, parent)
    once(run, lambda run, device, stop: learn(run, source, device, stop), wait)
    return run
