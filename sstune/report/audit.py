"""A masking audit as text: checks, remarks and verdict. Imports neither torch nor pandas."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sstune.schema.audit import SKIPPED, SOUGHT, Status, Verdict

VERDICTS = {
    Verdict.masked: "attacks through this network's own gradient overstate its robustness",
    Verdict.not_masked: "no attack that was tried is stronger than this network's own gradient",
    Verdict.inconclusive: "a check that the verdict needs is missing, failed or doubtful",
}
WORDS = {
    Status.ok: "ok",
    Status.warn: "warning",
    Status.masked: "MASKED",
    Status.error: "ERROR",
    Status.report: "reported",
    Status.not_run: "not run",
}
ANSI = {Status.warn: "33", Status.masked: "1;31", Status.error: "1;31", Status.not_run: "2"}
HEADER = ("id", "check", "figure", "threshold", "n", "finds", "verdict")
GAP = "  "

Audit = Mapping[str, Any]
Check = Mapping[str, Any]


def audit_text(audit: Audit, width: int = 110, colour: bool = False) -> str:
    """An audit for a terminal of ``width`` columns: checks, remarks and verdict.

    Args:
        audit: a row's ``audit``.
        colour: highlight checks that are not ok with ANSI colours.
    """
    checks = audit["checks"]
    header, *lines = _aligned(table_of(checks), width)
    painted = [_painted(line, check, colour) for line, check in zip(lines, checks, strict=True)]
    notes = [textwrap.fill(note, width, subsequent_indent="    ") for note in remarks(audit)]
    blocks = [[header, *painted], notes, [textwrap.fill(headline(audit), width)]]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def headline(audit: Audit) -> str:
    """The verdict, the checks that it is based on, and its meaning."""
    because = basis(audit)
    return f"{audit['verdict']}{f' ({because})' if because else ''}: {VERDICTS[audit['verdict']]}"


def basis(audit: Audit) -> str:
    """The checks that the verdict is based on, and those that were skipped."""
    skipped = [f"without {name}" for name, why in audit["not_run"].items() if why == SKIPPED]
    return ", ".join([*audit["because"], *skipped])


def remarks(audit: Audit) -> list[str]:
    """The text of each check that is not ok, then the reason of each that did not run."""
    texts = [
        f"{check['id']}: {check['text']}"
        for check in audit["checks"]
        if check["text"] and (check["status"] not in (Status.ok, Status.not_run) or is_powerless(check))
    ]
    return texts + [f"{name} did not run: {why}" for name, why in audit["not_run"].items()]


def cells_of(check: Check) -> tuple[str, ...]:
    """A check in the columns of :data:`HEADER`."""
    n = "" if check["n"] is None else str(check["n"])
    finds = "" if check.get("finds") is None else f"{check['finds']:.1f}"
    words = WORDS[check["status"]]
    return check["id"], check["title"], _figure_of(check), check["threshold"], n, finds, words


def table_of(checks: Sequence[Check]) -> list[tuple[str, ...]]:
    """The checks as lines below a header; without ``finds`` if no check says it, as in old rows."""
    lines = [HEADER, *map(cells_of, checks)]
    at = HEADER.index("finds")
    if any(line[at] for line in lines[1:]):
        return lines
    return [line[:at] + line[at + 1 :] for line in lines]


def is_powerless(check: Check) -> bool:
    """Whether a deciding check could not have found as much as the verdict NOT MASKED requires."""
    return (check.get("finds") or 0) > SOUGHT


def _figure_of(check: Check) -> str:
    """A check's figure with its unit; empty if it has none."""
    if check["figure"] is None:
        return ""
    shown = f"{check['figure']:.1f}" if check["unit"] in ("points", "%") else f"{check['figure']:.3g}"
    return f"{shown} {check['unit'] or ''}".strip()


def _aligned(lines: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """Lines below a header of :data:`HEADER`; a title or a threshold that is too long is wrapped."""
    sizes = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sizes[3] = min(sizes[3], width // 4)
    sizes[1] = min(sizes[1], width - sum(sizes[:1] + sizes[2:]) - len(GAP) * (len(sizes) - 1))
    for line in lines:
        wrapped = [textwrap.wrap(text, size) for text, size in zip(line, sizes, strict=True)]
        yield "\n".join(
            GAP.join(
                text.rjust(size) if name in ("figure", "n", "finds") else text.ljust(size)
                for name, text, size in zip(lines[0], texts, sizes, strict=True)
            ).rstrip()
            for texts in itertools.zip_longest(*wrapped, fillvalue="")
        )


def _painted(line: str, check: Check, colour: bool) -> str:
    code = ANSI.get(check["status"]) if colour else None
    return f"\033[{code}m{line}\033[0m" if code else line
