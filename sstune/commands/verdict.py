"""Verdict and page of a finished audit, made from its row. Imports no torch."""

from __future__ import annotations

import shutil
import sys

from sstune.report.audit import audit_text
from sstune.runs import RESULT, Run
from sstune.schema.audit import Verdict
from sstune.storage import write_text


def present(run: Run) -> None:
    """Print the checks and the verdict of an audit; write its page ``audit.html`` unless it is there."""
    row = run.result()
    if row is None or "audit" not in row:
        return
    width = max(80, shutil.get_terminal_size((110, 24)).columns)
    print(f"\n{audit_text(row['audit'], width, sys.stdout.isatty())}", flush=True)
    page, picture = run.directory / "audit.html", run.directory / "images.png"
    if not page.exists() or page.stat().st_mtime_ns < (run.directory / RESULT).stat().st_mtime_ns:
        from sstune.report.audit_page import audit_page  # matplotlib takes a second to import

        write_text(page, audit_page(row, picture.read_bytes() if picture.exists() else None))
    print(f"page: {page}", flush=True)


def strict_failure(run: Run) -> str | None:
    """Why a finished run fails ``audit.strict``, or None."""
    row = run.result()
    if not run.config.audit.strict or row is None or "audit" not in row:
        return None
    verdict, because = row["audit"]["verdict"], ", ".join(row["audit"]["because"])
    if verdict == Verdict.not_masked:
        return None
    return f"{run.directory}: {verdict} ({because}), but audit.strict requires {Verdict.not_masked}"
