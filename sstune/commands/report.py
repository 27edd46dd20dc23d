"""``sstune report``: make tables and figures from rows."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from sstune.locking import file_in_the_way, make_directory
from sstune.row import Row
from sstune.schema import RequestError
from sstune.validation.leaves import text_problem
from sstune.validation.places import place_problem

if TYPE_CHECKING:
    import pandas as pd


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RequestError(f"report: {message}; see {self.prog} --help")


def run(argv: Sequence[str]) -> int:
    """Print a table of the given rows and, with ``--out``, write tables and figures; returns the exit status.

    Raises:
        RequestError: the command line is invalid, there are no rows, rows contradict each other, or ``--out``
            cannot be a directory.
        StorageError: a file cannot be read or written.
    """
    parser = _parser()
    if {"-h", "--help"} & set(argv):
        print(parser.format_help(), end="")
        return 0
    asked = parser.parse_args(argv)
    for path in asked.rows:
        if problem := text_problem(path):
            raise RequestError(f"report: ROWS {problem}")
    if asked.out is not None and (file := file_in_the_way(asked.out)):
        raise RequestError(f"--out {asked.out}: {file} is a file, expected a directory")
    if asked.out is not None and (problem := place_problem(str(asked.out))):
        raise RequestError(f"--out {problem}")
    # imported late: pandas takes a second, which --help and a mistyped option need not wait for
    from sstune.report.measurements import frame
    from sstune.report.rows import read_rows
    from sstune.report.tables import to_text

    rows = read_rows(asked.rows)
    cells = frame(rows)
    width = shutil.get_terminal_size((110, 24)).columns
    print(to_text(cells, max(80, width)), end="")
    if asked.out is not None:
        written = _write(rows, cells, asked.out)
        print("\nwrote", *(f"  {path}" for path in written), sep="\n")
    return 0


def _parser() -> _Parser:
    parser = _Parser(
        prog="sstune report",
        allow_abbrev=False,
        description="Print a table of finished runs; with --out also write CSV, LaTeX, figures and the rows.",
    )
    parser.add_argument(
        "rows",
        metavar="ROWS",
        nargs="*",
        default=["runs"],
        help="run directories, directories of runs, or rows.jsonl files (default: runs)",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="where to write, e.g. results/NAME")
    return parser


def _write(rows: list[Row], cells: pd.DataFrame, out: Path) -> list[Path]:
    """Write all tables and figures that are not empty into ``out``; returns the files.

    Args:
        cells: :func:`sstune.report.measurements.frame` of ``rows``.
    """
    from sstune.report.alignment import alignment_by_layer, alignment_table
    from sstune.report.audit_table import audit_table
    from sstune.report.effort import metric_against_effort
    from sstune.report.figures import metric_against_eps
    from sstune.report.pairs import gap_table, paired_table
    from sstune.report.retrieval import retrieval_curves, retrieval_table
    from sstune.report.rows import write_rows
    from sstune.report.tables import table, to_csv, to_latex, wide
    from sstune.report.transfer import transfer_map
    from sstune.storage import write_text

    make_directory(out, "--out")
    alignment = alignment_table(rows)
    texts = {"table.csv": to_csv(table(cells)), "wide.csv": to_csv(wide(cells)), "table.tex": to_latex(cells)}
    others = {
        "gap.csv": gap_table(cells),
        "paired.csv": paired_table(cells),
        "retrieval.csv": retrieval_table(cells),
        "audit.csv": audit_table(rows, cells),
        "alignment.csv": alignment,
    }
    texts |= {name: to_csv(found) for name, found in others.items() if len(found)}
    for name, text in texts.items():
        write_text(out / name, text)
    write_rows(rows, out / "rows.jsonl")
    figures = [
        *metric_against_eps(cells, out),
        *retrieval_curves(cells, out),
        *metric_against_effort(cells, out),
        *transfer_map(cells, out / "transfer"),
        *alignment_by_layer(alignment, out / "alignment"),
    ]
    return [*(out / name for name in texts), *figures, out / "rows.jsonl"]
