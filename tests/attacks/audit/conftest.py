"""Evidence: of real attacks on the digits, and of outcomes made up to stand at either side of a threshold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from victims import victim_of
from worlds import World

from sstune.attacks import Attack, GradientSource, Outcome, Victim, run_attack
from sstune.attacks.audit import Evidence
from sstune.datasets import Split
from sstune.quantities import parse_eps
from sstune.rules import feedback_layers
from sstune.schema import AuditConfig, Gradient

CPU = torch.device("cpu")
EPS = ["16/255", "32/255", "64/255"]
FEW = {"black_box_n": 60, "square_queries": 100, "label_n": 60, "label_queries": 150}

Audited = Callable[..., Evidence]


@pytest.fixture
def audited(test_split: Split) -> Audited:
    """``audited(network, surrogate=None, split=None, eps=EPS, own={}, **config)``: real attacks."""

    def make(
        network: nn.Module,
        surrogate: nn.Module | None = None,
        split: Split | None = None,
        eps: Sequence[str] = EPS,
        own: Mapping[str, Any] | None = None,
        n_classes: int = 10,
        **config: Any,
    ) -> Evidence:
        def run(key: str, victim: Victim, attack: Attack, source: GradientSource, eps: str) -> Outcome:
            return run_attack(victim, attack, source, parse_eps(eps), 128)

        split = test_split if split is None else split
        return Evidence(
            victim=victim_of(network, split),
            white_box=GradientSource(Gradient.rule, network, **(own or {})),
            exact=GradientSource(Gradient.exact, network),
            surrogate=None if surrogate is None else GradientSource(Gradient.surrogate, surrogate, "other"),
            has_feedback=bool(feedback_layers(network)),
            n_classes=n_classes,
            eps=list(eps),
            seed=0,
            config=AuditConfig(**{**FEW, **config}),
            run=run,
        )

    return make


@pytest.fixture
def planned() -> Audited:
    """``planned({"pgd rule 8/255": 90, ...}, n=100)``: evidence of attacks that leave so many samples right,
    the first ones, or those where a (n,) bool is set.

    Stronger PGD finds no more unless it is planned;
    another attack that is not planned is a KeyError.

    The network is a real one: a linear classifier of images in which one pixel is white.
    """

    def make(
        left: Mapping[str, int | Tensor] | World,
        n: int = 100,
        eps: Sequence[str] = ("8/255",),
        clean: int | Tensor | None = None,
        has_feedback: bool = True,
        labels: Tensor | None = None,
        **config: Any,
    ) -> Evidence:
        def run(key: str, victim: Victim, attack: Attack, source: GradientSource, eps: str) -> Outcome:
            if isinstance(left, dict) and " round " in key and key not in left:
                key = f"pgd rule {eps}"
            right = first(left[key], n)[victim.samples]
            assert not (right & ~victim.clean).any(), key
            outcome = victim.begin()
            outcome.achieved = 1 - right.float()
            return outcome

        network = nn.Sequential(nn.Flatten(), nn.Linear(16, 10, bias=False)).eval()
        network[1].weight.data.copy_(torch.eye(16)[:10])
        labels = torch.arange(n) % 10 if labels is None else labels
        said = torch.where(first(n if clean is None else clean, n), labels, (labels + 1) % 10)
        pixels = torch.eye(16)[said] + torch.eye(16)[(said + 2) % 10] / 2
        split = Split((255 * pixels).round().byte().view(n, 1, 4, 4), labels)
        return Evidence(
            victim=victim_of(network, split),
            white_box=GradientSource(Gradient.rule, network),
            exact=GradientSource(Gradient.exact, network),
            surrogate=GradientSource(Gradient.surrogate, network, "other"),
            has_feedback=has_feedback,
            n_classes=10,
            eps=list(eps),
            seed=0,
            config=AuditConfig(**{"black_box_n": n, "label_n": n, **config}),
            run=run,
        )

    return make


def first(which: int | Tensor, n: int) -> Tensor:
    return torch.arange(n) < which if isinstance(which, int) else which
