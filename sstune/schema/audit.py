"""Checks, statuses and verdicts of the masking audit. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """Result of a check; for ``not_run``, the check's text gives the reason."""

    ok = "ok"
    report = "report"
    warn = "warn"
    masked = "masked"
    error = "error"
    not_run = "not run"


class Verdict(StrEnum):
    """Whether measured robustness is due to gradient masking."""

    masked = "MASKED"
    not_masked = "NOT MASKED"
    inconclusive = "INCONCLUSIVE"


SKIPPED = "skipped by audit.skip"
SOUGHT = 5.0  # points of hidden robustness that each deciding check must be able to find


@dataclass(frozen=True)
class CheckSpec:
    """A check of the audit.

    Args:
        title: ``{metric}`` stands for the task's.
        deciding: whether the verdict NOT MASKED requires it to be ok; it can also return MASKED.
        doubtful_on_warning: whether its warning makes the verdict INCONCLUSIVE, since an attack seems
            stronger than the one by the network's own gradient, or gradients are zero or random.
        settled_by: the check whose attack tells what its warning means; its warning makes the verdict
            INCONCLUSIVE for a task to which that check does not apply.
    """

    id: str
    title: str
    deciding: bool = False
    doubtful_on_warning: bool = False
    settled_by: str = ""


# In the order in which they run. Functions in sstune/attacks/audit/ are registered by these ids.
CHECKS: dict[str, CheckSpec] = {
    spec.id: spec
    for spec in (
        CheckSpec("D0", "valid to measure"),
        CheckSpec("D1", "rule and exact gradient attack alike", deciding=True, doubtful_on_warning=True),
        CheckSpec("D2", "rule and exact gradient point alike"),
        CheckSpec("D16", "own gradient predicts differences", deciding=True, doubtful_on_warning=True),
        CheckSpec("D3", "PGD stronger than FGSM"),
        CheckSpec("D4", "stronger PGD finds no more", deciding=True, doubtful_on_warning=True),
        CheckSpec("D5", "a huge eps leaves nothing", deciding=True, settled_by="D13"),
        CheckSpec("D6", "{metric} falls with eps"),
        CheckSpec("D7", "white box beats scores (Square)", deciding=True, doubtful_on_warning=True),
        CheckSpec("D8", "white box beats transfer", deciding=True, doubtful_on_warning=True),
        CheckSpec("D9", "PGD stronger than noise"),
        CheckSpec("D10", "gradients are there", doubtful_on_warning=True),
        CheckSpec("D11", "deterministic", doubtful_on_warning=True),
        CheckSpec("D12", "outputs are logits"),
        CheckSpec("D13", "white box beats labels (RayS)", deciding=True, doubtful_on_warning=True),
        CheckSpec("D14", "success not at the last step"),
        CheckSpec("D15", "worst case per sample"),
    )
}
DECIDING = tuple(spec.id for spec in CHECKS.values() if spec.deciding)
DOUBTFUL_ON_WARNING = tuple(spec.id for spec in CHECKS.values() if spec.doubtful_on_warning)
