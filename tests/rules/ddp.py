"""Training in one process, or in several that share every batch (DistributedDataParallel over gloo)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from cases import small_network
from torch import Tensor, nn
from variants import rule_of

from sstune.rules import begin_step, convert, feedback_layers

STEPS = 5
BATCH = 8


def train(form: str, rank: int, ranks: int) -> dict[str, Any]:
    """State dict, and V (dfa: B) of every layer, after some steps on this rank's share of the batches."""
    torch.manual_seed(0)
    network = small_network()
    if rank > 0:  # DistributedDataParallel starts all from the first
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(1)
    convert(network, rule_of(form), seed=0, example=torch.rand(2, 3, 8, 8))
    model = network if ranks == 1 else nn.parallel.DistributedDataParallel(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.05)
    for step in range(STEPS):
        begin_step(model)
        images = torch.rand(BATCH, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        labels = torch.arange(BATCH) % 5
        loss = F.cross_entropy(model(images[rank::ranks]), labels[rank::ranks])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    feedback: dict[str, Tensor] = {}
    for name, layer in feedback_layers(network).items():
        used: Any = layer.feedback
        feedback[name] = used.projection if used.is_direct else used.matrix(layer.weight)
    return {"state": network.state_dict(), "feedback": feedback}


def work(rank: int, ranks: int, forms: list[str], folder: Path) -> None:
    """One process: trains with every rule, and saves what :func:`train` gives."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = torch.distributed.FileStore(str(folder / "store"), ranks)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    torch.save({form: train(form, rank, ranks) for form in forms}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()
