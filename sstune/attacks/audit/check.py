"""The result of a check, the functions that make the checks, and the verdict over all results."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from sstune.attacks.audit.evidence import Evidence
from sstune.registry import Registry
from sstune.schema.audit import CHECKS, DECIDING, DOUBTFUL_ON_WARNING, SOUGHT, Status, Verdict


@dataclass(frozen=True)
class CheckResult:
    """The answer of one check; ``id`` and ``title`` are those of :data:`sstune.schema.audit.CHECKS`.

    Args:
        figure: what was measured, in ``unit``; None where there is no single number.
        threshold: what the figure is compared with, in words.
        n: the number of samples.
        text: one sentence for a reader.
        finds: of a deciding check, the fewest points of hidden robustness that it would have found with 80 %
            power; None where this has no meaning.
    """

    status: Status
    figure: float | None = None
    unit: str = ""
    threshold: str = ""
    n: int | None = None
    text: str = ""
    id: str = ""
    title: str = ""
    finds: float | None = None


# id -> function of a check in :data:`sstune.schema.audit.CHECKS`.
CHECK_FUNCTIONS: Registry[Callable[[Evidence], CheckResult]] = Registry("audit.skip")


def verdict(
    results: Sequence[CheckResult], skipped: Collection[str] = (), not_applicable: Collection[str] = ()
) -> tuple[Verdict, list[str]]:
    """The overall verdict, and the ids of the checks that it rests on.

    INCONCLUSIVE: a check failed or D0, whether the figures are valid, did not run; or nothing says MASKED,
    but a deciding check did not run, was not ``skipped`` on purpose and is not among those
    ``not_applicable`` to the task, no deciding check is left, one of them could not have found
    :data:`SOUGHT` points, or one of :data:`DOUBTFUL_ON_WARNING` warns, or one whose warning only a check that
    is not applicable could settle.
    """

    def with_status(ids: Sequence[str], *wanted: Status) -> list[str]:
        return [result.id for result in results if result.status in wanted and result.id in ids]

    if invalid := [result.id for result in results if result.status is Status.error]:
        return Verdict.inconclusive, invalid
    if not_validated := with_status(["D0"], Status.not_run):
        return Verdict.inconclusive, not_validated
    if masked := [result.id for result in results if result.status is Status.masked]:
        return Verdict.masked, masked
    missing = {*with_status(DECIDING, Status.not_run)} - {*skipped, *not_applicable}
    unsettled = [spec.id for spec in CHECKS.values() if spec.settled_by in not_applicable]
    powerless = [result.id for result in results if is_powerless(result)]
    doubtful = {*missing, *powerless, *with_status([*DOUBTFUL_ON_WARNING, *unsettled], Status.warn)}
    if doubtful:
        return Verdict.inconclusive, [result.id for result in results if result.id in doubtful]
    if decided := with_status(DECIDING, Status.ok, Status.warn):
        return Verdict.not_masked, decided
    return Verdict.inconclusive, with_status(DECIDING, Status.not_run)


def is_powerless(result: CheckResult) -> bool:
    """Whether a check could not have found :data:`SOUGHT` points of hidden robustness."""
    return result.finds is not None and result.finds > SOUGHT
