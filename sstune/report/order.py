"""Sort order of rules, attacks, gradients and metrics in tables and figures. Imports no pandas."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sstune.metric import ACCURACY
from sstune.schema import ATTACK_TRAITS

RULES = (
    "bp", "sham", "usf", "frsf", "brsf", "fa", "fa_signed", "dfa", "kp", "wm", "pfa", "pfa_o",
)  # fmt: skip
GRADIENTS = ("rule", "exact", "surrogate")


def rank(name: str, known: Sequence[str]) -> tuple[int, str]:
    """Sort key: ``known`` names in their order, then the others alphabetically."""
    return (known.index(name) if name in known else len(known), name)


def attack_rank(attack: str) -> tuple[int, str]:
    """Sort key: clean first, then attacks as in :data:`ATTACK_TRAITS`, Linf before L2."""
    return rank(attack.partition(" ")[0], ("clean", *ATTACK_TRAITS))[0], attack


def metric_rank(name: str) -> tuple[int, str]:
    """Sort key: accuracy, then other metrics alphabetically."""
    return rank(name, (ACCURACY.name,))


def cell_order(record: Mapping[Any, Any]) -> tuple[Any, ...]:
    """Sort key: clean first, then attack, eps by value, gradient, its source, n."""
    eps = record["eps_value"]
    return (
        attack_rank(record["attack"]),
        -1.0 if math.isnan(eps) else eps,
        record["eps"],
        rank(record["gradient"], GRADIENTS),
        record["source"],
        record["n"],
    )
