"""How much a network hides: what PGD through its own gradient leaves, and what an adaptive attack leaves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import pandas as pd
import torch
from torch import Tensor, nn

from scripts.gallery.entry import Entry, base_label
from scripts.gallery.table import KEY, Row
from sstune.attacks import ATTACKS, GradientSource, Victim, largest_batch, run_attack
from sstune.commands.data import load
from sstune.commands.lineage import derive_run
from sstune.commands.run_once import prepare
from sstune.commands.victim import load_victim
from sstune.composition import request
from sstune.quantities import parse_eps
from sstune.schema import AttackLoss, Gradient, PgdConfig, RunConfig
from sstune.training import ALONE

OWN_STEPS = 20
MARGIN_STEPS, CE_STEPS = 100, 50  # of the adaptive attack; the second part attacks what the first one leaves


class Substituted(nn.Module):
    """The outputs of ``network`` with the derivative of ``twin`` (BPDA)."""

    def __init__(self, network: nn.Module, twin: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.twin = twin

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            outputs: Tensor = self.network(images)
        if not torch.is_grad_enabled():
            return outputs
        twin = self.twin(images)
        return outputs + (twin - twin.detach())


def parts(entry: Entry, network: nn.Module, twin: nn.Module | None) -> list[tuple[GradientSource, PgdConfig]]:
    """The adaptive attack: PGD with steps of eps/10 on the margin, then on the cross-entropy.

    With a twin, the second part attacks the twin's own outputs, as the network's may saturate; the network
    judges only where it ends.
    """
    differentiable = network if twin is None else Substituted(network, twin).eval()
    own = GradientSource(Gradient.rule, differentiable, eot=entry.eot)
    margin, ce = (
        PgdConfig("pgd", [], loss=loss, steps=steps // entry.eot, step_size="eps/10")
        for loss, steps in ((AttackLoss.margin, MARGIN_STEPS), (AttackLoss.ce, CE_STEPS))
    )
    if twin is None:
        return [(own, margin), (own, ce)]
    return [(own, margin), (GradientSource(Gradient.surrogate, twin, "twin"), replace(ce, early_exit=False))]


def adaptive(
    entry: Entry, victim: Victim, twin: nn.Module | None, attacked: Tensor, eps: float, restarts: int
) -> Tensor:
    """(n,) bool, those of the samples ``attacked``, (n,) bool, that the adaptive attack leaves.

    Of random outputs the part that leaves fewest counts: a union would count the luck of many draws.
    """
    left, each = attacked, [attacked]
    for restart in range(restarts):
        for number, (source, config) in enumerate(parts(entry, victim.network, twin)):
            index = (attacked if entry.is_random else left).nonzero().flatten()
            if not len(index):
                return left
            attack = ATTACKS["pgd"](config, 1 + 10 * restart + number)
            some = victim.take(index)
            found = torch.zeros_like(left)
            found[index] = run_attack(some, attack, source, eps, largest_batch(some, source)).robust
            left = left & found
            each.append(found)
    return fewest(*each) if entry.is_random else left


def fewest(*each: Tensor) -> Tensor:
    """The one of several (n,) bool that has the fewest samples."""
    return min(each, key=lambda flags: int(flags.sum()))


def left_by_own(config: RunConfig, victim: Victim, eps: Sequence[str]) -> tuple[list[Tensor], list[float]]:
    """What PGD-20 through the network's own gradient leaves at each eps, (n,) bool each, and its seconds."""
    source, found, seconds = GradientSource(Gradient.rule, victim.network), [], []
    for each in eps:
        attack = ATTACKS["pgd"](PgdConfig("pgd", [each], steps=OWN_STEPS), config.seed)
        outcome = run_attack(victim, attack, source, parse_eps(each), largest_batch(victim, source))
        found.append(outcome.robust)
        seconds.append(outcome.seconds)
    return found, seconds


def measure(entry: Entry, config: RunConfig, victim: Victim, eps: Sequence[str], restarts: int) -> list[Row]:
    """The rows of a network, one for each of ``eps``, in ascending order.

    Unless outputs are random, a sample that an attack breaks is broken at each larger eps as well, and one
    that the adaptive attack leaves is not attacked again at a smaller eps.
    """
    twin = entry.made_twin()
    twin = twin if twin is None else twin.to(victim.device)
    found, seconds = left_by_own(config, victim, eps)
    still = [victim.clean] * len(eps) if entry.is_random else [*accumulate(found, torch.logical_and)]
    rows: list[Row] = []
    at_larger = torch.zeros_like(victim.clean)
    for number in reversed(range(len(eps))):
        began = time.perf_counter()
        attacked = still[number] & ~at_larger
        left = adaptive(entry, victim, twin, attacked, parse_eps(eps[number]), restarts)
        if entry.is_random:
            left = fewest(left, found[number])
        else:
            left = at_larger = left | at_larger
        took = seconds[number] + time.perf_counter() - began
        rows.insert(0, Row.of(entry, config, eps[number], (victim.clean, found[number], left), took))
    return rows


def measured(entry: Entry, overrides: Sequence[str], restarts: int, known: pd.DataFrame) -> list[Row]:
    """The rows of a network, unless all are ``known``; its victim is that of ``sstune attack`` with these
    ``overrides``."""
    words = ["attack=pgd", f"attack.steps={OWN_STEPS}", f"model.factory={entry.spec}"]
    run, source = derive_run(request("attack", [*overrides, *words]), None)
    config = run.config
    here = [entry.name, config.dataset.label, base_label(entry.base), config.attack.n]
    same = known[(known[KEY] == here).all(axis=1)]
    if {*config.attack.eps} <= {*same["eps"]}:
        return []
    device = prepare(config, ALONE)
    print(f"{entry.name}", flush=True)
    victim = load_victim(config, source, load(run, source, first=False), device)
    return measure(entry, config, victim, sorted(config.attack.eps, key=parse_eps), restarts)
