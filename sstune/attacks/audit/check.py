"""One diagnostic's answer, and the verdict that all of them give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """What a check says. ``not_run`` has a reason in its text."""

    ok = "ok"
    report = "report"
    warn = "warn"
    masked = "masked"
    error = "error"
    not_run = "not run"


class Verdict(StrEnum):
    """Whether what looks like robustness is only a gradient that misleads the attack."""

    masked = "MASKED"
    not_masked = "NOT MASKED"
    inconclusive = "INCONCLUSIVE"


@dataclass(frozen=True)
class Check:
    """The answer of one of D0 to D15; ``id`` and ``title`` are those of :data:`CHECKS`.

    Args:
        figure: what was measured, in ``unit``; None where there is no single number.
        threshold: what it was held against, in words.
        n: samples it rests on.
        text: one sentence for a reader.
    """

    status: Status
    figure: float | None = None
    unit: str = ""
    threshold: str = ""
    n: int | None = None
    text: str = ""
    id: str = ""
    title: str = ""


# Without these there is no saying NOT MASKED; each can say MASKED.
DECIDING = ("D1", "D5", "D7", "D8", "D13")
# Where these warn, the white-box attack was no fair one, and its failure proves nothing.
UNFAIR = ("D10", "D11")


def verdict(checks: Sequence[Check], skipped: Sequence[str] = ()) -> tuple[Verdict, list[str]]:
    """The overall verdict, and the ids of the checks that it rests on.

    INCONCLUSIVE: the figures are invalid (D0); or nothing says MASKED, but a deciding check did not run and
    was not ``skipped`` on purpose, or gradients vanish or are random, so that the attack may fail for that.
    """

    def with_status(status: Status, among: Sequence[str]) -> list[str]:
        return [check.id for check in checks if check.status is status and check.id in among]

    everything = [check.id for check in checks]
    if invalid := with_status(Status.error, everything):
        return Verdict.inconclusive, invalid
    if masked := with_status(Status.masked, everything):
        return Verdict.masked, masked
    missing = [name for name in with_status(Status.not_run, DECIDING) if name not in skipped]
    if doubtful := missing + with_status(Status.warn, UNFAIR):
        return Verdict.inconclusive, doubtful
    return Verdict.not_masked, with_status(Status.ok, DECIDING)
