"""What ``sstune attack attack=audit`` shows of a finished audit. Imports no torch."""

from __future__ import annotations

import shutil
import sys

from sstune.report.audit import audit_text
from sstune.runs import Run
from sstune.storage import write_text


def present(run: Run) -> None:
    """Print the checks and the verdict of a finished audit, and write its page if there is none."""
    row = run.result()
    if row is None or "audit" not in row:
        return
    width = max(80, shutil.get_terminal_size((110, 24)).columns)
    print(f"\n{audit_text(row['audit'], width, sys.stdout.isatty())}", flush=True)
    page, picture = run.directory / "audit.html", run.directory / "images.png"
    if not page.exists():
        from sstune.report.audit_page import audit_page

        write_text(page, audit_page(row, picture.read_bytes() if picture.exists() else None))
    print(f"page: {page}", flush=True)
