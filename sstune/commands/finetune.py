"""``sstune finetune``: fine-tune a trained network with the backward pass of a learning rule."""

from __future__ import annotations

from sstune.commands.lineage import default_parent, derive_run, has_default_parent
from sstune.commands.run_once import run_once
from sstune.commands.train import fit_network, train
from sstune.composition import Request
from sstune.runs import Run


def finetune(request: Request, wait: bool = False) -> Run:
    """Fine-tune the network of ``init_from``, by default of ``sstune train``'s run, which is made if missing.

    The run inherits backbone, dataset and task unless the command line sets them.

    Args:
        wait: wait for another process that works on this run, instead of raising ``Locked``.
    """
    parent = train(default_parent(request), wait=True) if has_default_parent(request.config) else None
    run, source = derive_run(request, parent)
    run_once(run, lambda run, device, stop: fit_network(run, source, device, stop), wait)
    return run
