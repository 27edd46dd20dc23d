"""D7, D8, D13: whether an attack that does not use the network's own gradient breaks what PGD leaves."""

from __future__ import annotations

from collections.abc import Mapping

from sstune.attacks.audit.check import CHECK_FUNCTIONS, CheckResult
from sstune.attacks.audit.evidence import Evidence, OtherAttack
from sstune.attacks.audit.hidden import LEVEL, TOLERATED, Hidden, judged
from sstune.attacks.audit.survivors import hidden

THRESHOLD = f"<= {TOLERATED:g} or chance"


@CHECK_FUNCTIONS.register("D7")
def d7(evidence: Evidence) -> CheckResult:
    """Square, by scores."""
    return _over_eps(evidence, {"Square": evidence.square}, "audit.black_box_n", evidence.config.black_box_n)


@CHECK_FUNCTIONS.register("D13")
def d13(evidence: Evidence) -> CheckResult:
    """RayS, by labels."""
    return _over_eps(evidence, {"RayS": evidence.rays}, "audit.label_n", evidence.config.label_n)


@CHECK_FUNCTIONS.register("D8")
def d8(evidence: Evidence) -> CheckResult:
    """MI-FGSM on the network smoothed by noise, and on another network."""
    attacks: dict[str, OtherAttack] = {"transfer from the smoothed copy": evidence.smoothed}
    if evidence.surrogate is not None:
        attacks[f"transfer from {evidence.surrogate.name}"] = evidence.transfer
    return _over_eps(evidence, attacks)


def _over_eps(
    evidence: Evidence, attacks: Mapping[str, OtherAttack], key: str = "attack.n", most: int | None = None
) -> CheckResult:
    """Each of ``attacks`` at each probed eps, on at most ``most`` (``key``) of the samples that PGD leaves.

    They share the level.
    """
    level = LEVEL / (len(attacks) * len(evidence.probed_eps))
    found: dict[tuple[str, str], Hidden] = {
        (name, eps): hidden(evidence, eps, attack, most, level)
        for name, attack in attacks.items()
        for eps in evidence.probed_eps
    }
    at, status = judged(found.values())
    (name, eps), worst = list(found.items())[at]
    metric = evidence.victim.task.metric
    text = f"at {eps} {name} breaks {worst.points:.1f} points of the {metric} that PGD leaves"
    weakest = max(found.values(), key=lambda one: one.finds(level))
    text = "; ".join(filter(None, [text, weakest.advice(level, key)]))
    finds = weakest.finds(level)
    return CheckResult(status, worst.points, "points", THRESHOLD, evidence.n, text, finds=finds)
