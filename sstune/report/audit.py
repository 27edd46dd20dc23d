"""Masking audits as text and as a table: which checks ran, what they found, and the one verdict."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sstune.report.rows import Row, eps_value, unique
from sstune.report.variants import LABELS

if TYPE_CHECKING:
    import pandas as pd

VERDICTS = {
    "MASKED": "attacks through this network's own gradient overstate its robustness",
    "NOT MASKED": "nothing that was tried does better than this network's own gradient",
    "INCONCLUSIVE": "what a verdict takes is missing, has failed or is in doubt",
}
WORDS = {
    "ok": "ok",
    "warn": "warning",
    "masked": "MASKED",
    "error": "ERROR",
    "report": "reported",
    "not run": "not run",
}
AMISS = ("warn", "masked", "error")
ANSI = {"warn": "33", "masked": "1;31", "error": "1;31", "not run": "2"}
HEADER = ("id", "check", "figure", "threshold", "n", "verdict")
GAP = "  "

Audit = Mapping[str, Any]
Check = Mapping[str, Any]


def audit_text(audit: Audit, width: int = 110, colour: bool = False) -> str:
    """An audit for a terminal of ``width`` columns: the checks, what was amiss or not run, the verdict.

    Args:
        audit: a row's ``audit``.
        colour: mark by ANSI colours what is not ok; for a terminal, not for a file.
    """
    checks = audit["checks"]
    header, *lines = _aligned([HEADER, *map(cells_of, checks)], width)
    painted = [_painted(line, check, colour) for line, check in zip(lines, checks, strict=True)]
    notes = [textwrap.fill(note, width, subsequent_indent="    ") for note in remarks(audit)]
    blocks = [[header, *painted], notes, [textwrap.fill(headline(audit), width)]]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def headline(audit: Audit) -> str:
    """The verdict, the checks that it rests on, and what it says."""
    because = f" ({', '.join(audit['because'])})" if audit["because"] else ""
    return f"{audit['verdict']}{because}: {VERDICTS[audit['verdict']]}"


def remarks(audit: Audit) -> list[str]:
    """A line for each check that has something to say, and for each that did not run."""
    found = [
        f"{check['id']}: {check['text']}"
        for check in audit["checks"]
        if check["status"] not in ("ok", "not run") and check["text"]
    ]
    return found + [f"{name} did not run: {why}" for name, why in audit["not_run"].items()]


def cells_of(check: Check) -> tuple[str, ...]:
    """A check in the columns of :data:`HEADER`."""
    n = "" if check["n"] is None else str(check["n"])
    return check["id"], check["title"], _figure_of(check), check["threshold"], n, WORDS[check["status"]]


def _figure_of(check: Check) -> str:
    """A check's figure with its unit; empty where it has none."""
    if check["figure"] is None:
        return ""
    shown = f"{check['figure']:.1f}" if check["unit"] in ("points", "%") else f"{check['figure']:.3g}"
    return f"{shown} {check['unit'] or ''}".strip()


def audit_table(rows: Iterable[Row]) -> pd.DataFrame:
    """One line per audited network; empty if none was.

    Accuracies in [0, 1], of the audit's ``n`` samples: clean, and at each eps under PGD through the rule's
    and the exact gradient and in the worst case over all that was tried; their gap in points. Of networks
    that were audited at different eps, what one lacks is left empty. After the verdict: the checks that it
    rests on, those that found something amiss (a warning or worse), and those that did not run.
    """
    import pandas as pd

    from sstune.report.measurements import frame

    rows = unique(rows)
    audited = {row["identity"]: row for row in rows if row.get("audit")}
    if not audited:
        return pd.DataFrame()
    worst = frame(rows)
    records = worst[(worst["attack"] == "audit") & worst["identity"].isin(audited.keys())]
    records = records.drop_duplicates("identity")
    listed = {eps: eps_value(row, eps) for row in audited.values() for eps in row["config"]["attack"]["eps"]}
    each_eps = sorted(listed, key=lambda eps: (listed[eps], eps))
    columns = [*LABELS, "variant", "seed", "n", "clean", *itertools.chain(*map(_columns, each_eps))]
    lines = [_line(record, audited[record["identity"]], each_eps) for record in records.to_dict("records")]
    return pd.DataFrame(lines, columns=[*columns, "verdict", "because", "amiss", "not run"])


def _columns(eps: str) -> list[str]:
    return [f"pgd {eps} rule", f"pgd {eps} exact", f"gap {eps} points", f"worst case {eps}"]


def _line(record: Mapping[Hashable, Any], row: Row, each_eps: Sequence[str]) -> dict[str, Any]:
    audit, measured = row["audit"], [found for found in row["measurements"] if found["split"] == "test"]
    (clean,) = [found for found in measured if found["attack"] is None]
    line = {key: record[key] for key in (*LABELS, "variant")}
    line |= {"seed": row["config"]["seed"], "n": clean["n"], "clean": clean["correct"] / clean["n"]}
    for eps in each_eps:
        rule, exact, gap, worst = _columns(eps)
        line[rule] = _accuracy(measured, "pgd", "rule", eps)
        line[exact] = _accuracy(measured, "pgd", "exact", eps)
        line[gap] = None if None in (line[rule], line[exact]) else 100 * (line[rule] - line[exact])
        line[worst] = _accuracy(measured, "audit", None, eps)
    because, not_run = " ".join(audit["because"]), " ".join(audit["not_run"])
    amiss = " ".join(check["id"] for check in audit["checks"] if check["status"] in AMISS)
    return line | {"verdict": audit["verdict"], "because": because, "amiss": amiss, "not run": not_run}


def _accuracy(
    measured: Iterable[Mapping[str, Any]], attack: str, gradient: str | None, eps: str
) -> float | None:
    for found in measured:
        if (found["attack"], found["gradient"], found["eps"]) == (attack, gradient, eps):
            return found["correct"] / found["n"]
    return None


def _aligned(lines: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """Columns as in :data:`HEADER`; a title or a threshold that is too long goes on below."""
    sizes = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sizes[3] = min(sizes[3], width // 4)
    sizes[1] = min(sizes[1], width - sum(sizes[:1] + sizes[2:]) - len(GAP) * (len(sizes) - 1))
    for line in lines:
        wrapped = [textwrap.wrap(text, size) for text, size in zip(line, sizes, strict=True)]
        yield "\n".join(
            GAP.join(
                text.rjust(size) if name in ("figure", "n") else text.ljust(size)
                for name, text, size in zip(HEADER, texts, sizes, strict=True)
            ).rstrip()
            for texts in itertools.zip_longest(*wrapped, fillvalue="")
        )


def _painted(line: str, check: Check, colour: bool) -> str:
    code = ANSI.get(check["status"]) if colour else None
    return f"\033[{code}m{line}\033[0m" if code else line
