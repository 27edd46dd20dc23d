"""Masking audits as a table: one line per audited network."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from sstune.report.measurements import columns_for
from sstune.report.rows import eps_value, unique
from sstune.report.variants import LABELS
from sstune.row import Measurement, Row, metric_of, value_of
from sstune.schema.audit import Status

NOT_OK = (Status.warn, Status.masked, Status.error)


def audit_table(rows: Iterable[Row], cells: pd.DataFrame) -> pd.DataFrame:
    """One line per audited network.

    The metric in [0, 1] on the audit's ``n`` samples: clean, and at each eps under PGD through the rule's and
    the exact gradient, with their gap in points, and in the worst case over all attacks. A cell is empty if
    the network was not audited at that eps. After the verdict: the checks that it is based on (``because``),
    those with a warning or worse (``amiss``), and those that did not run. There is a column ``metric``
    unless all are accuracies.

    Args:
        cells: :func:`sstune.report.measurements.frame` of ``rows``.
    """
    rows = unique(rows)
    audited = {row["identity"]: row for row in rows if row.get("audit")}
    if not audited:
        return pd.DataFrame()
    records = cells[(cells["attack"] == "audit") & cells["identity"].isin(audited.keys())]
    records = records.drop_duplicates("identity")
    listed = {eps: eps_value(row, eps) for row in audited.values() for eps in row["config"]["attack"]["eps"]}
    each_eps = sorted(listed, key=lambda eps: (listed[eps], eps))
    columns = [*LABELS, "variant", "seed", "n", "clean", *itertools.chain(*map(_columns, each_eps))]
    columns = [*columns_for(records, columns), "verdict", "because", "amiss", "not run"]
    lines = [_line(record, audited[record["identity"]], each_eps) for record in records.to_dict("records")]
    return pd.DataFrame(lines, columns=columns)


def _columns(eps: str) -> list[str]:
    return [f"pgd {eps} rule", f"pgd {eps} exact", f"gap {eps} points", f"worst case {eps}"]


def _line(record: Mapping[Hashable, Any], row: Row, each_eps: Sequence[str]) -> dict[str, Any]:
    audit, measured = row["audit"], [found for found in row["measurements"] if found["split"] == "test"]
    (clean,) = [found for found in measured if found["attack"] is None]
    line = {key: record[key] for key in (*LABELS, "variant")}
    line |= {"metric": metric_of(clean), "seed": row["config"]["seed"]}
    line |= {"n": clean["n"], "clean": value_of(clean)}
    pgd = audit.get("pgd", "pgd")
    for eps in each_eps:
        rule, exact, gap, worst = _columns(eps)
        line[rule] = _value(measured, pgd, "rule", eps)
        line[exact] = _value(measured, pgd, "exact", eps)
        line[gap] = None if None in (line[rule], line[exact]) else 100 * (line[rule] - line[exact])
        line[worst] = _value(measured, "audit", None, eps)
    because, not_run = " ".join(audit["because"]), " ".join(audit["not_run"])
    amiss = " ".join(check["id"] for check in audit["checks"] if check["status"] in NOT_OK)
    return line | {"verdict": audit["verdict"], "because": because, "amiss": amiss, "not run": not_run}


def _value(measured: Iterable[Measurement], attack: str, gradient: str | None, eps: str) -> float | None:
    for found in measured:
        if (found["attack"], found["gradient"], found["eps"]) == (attack, gradient, eps):
            return value_of(found)
    return None
