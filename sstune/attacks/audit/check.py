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


# NOT MASKED rests on these; each can say MASKED.
DECIDING = ("D1", "D5", "D7", "D8", "D13")
# Where these warn, there is no telling: something seems to do better than the network's own gradient, or
# gradients are missing or random, so that an attack may fail for that alone.
UNSURE = ("D1", "D7", "D8", "D10", "D11", "D13")


def verdict(checks: Sequence[Check], skipped: Sequence[str] = ()) -> tuple[Verdict, list[str]]:
    """The overall verdict, and the ids of the checks that it rests on.

    INCONCLUSIVE: the figures are invalid, or nobody has looked whether they are (D0); or nothing says MASKED,
    but a deciding check did not run and was not ``skipped`` on purpose, none is left to decide, or one of
    :data:`UNSURE` warns.
    """

    def with_status(among: Sequence[str], *wanted: Status) -> list[str]:
        return [check.id for check in checks if check.status in wanted and check.id in among]

    if invalid := [check.id for check in checks if check.status is Status.error]:
        return Verdict.inconclusive, invalid
    if unseen := with_status(["D0"], Status.not_run):
        return Verdict.inconclusive, unseen
    if masked := [check.id for check in checks if check.status is Status.masked]:
        return Verdict.masked, masked
    open_ = [name for name in with_status(DECIDING, Status.not_run) if name not in skipped]
    open_ += with_status(UNSURE, Status.warn)
    if doubtful := [check.id for check in checks if check.id in open_]:
        return Verdict.inconclusive, doubtful
    if decided := with_status(DECIDING, Status.ok, Status.warn):
        return Verdict.not_masked, decided
    return Verdict.inconclusive, with_status(DECIDING, Status.not_run)
