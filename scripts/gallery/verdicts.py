"""Set the verdicts of audits of the gallery beside what its networks hide.

    sstune attack -m attack=audit dataset=digits out=runs/gallery \\
        model.factory=$(python -m scripts.gallery --specs)
    python -m scripts.gallery.verdicts runs/gallery         # reads and writes results/gallery

``verdicts.csv`` has a line for each audit; the printed table counts verdicts by what is hidden. Two kinds of
error matter: NOT MASKED where 5 points or more are hidden, and MASKED where it is less than 1.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd

from scripts.gallery import GALLERY
from scripts.gallery.table import read
from sstune.report.rows import read_rows
from sstune.row import Row
from sstune.schema.audit import SOUGHT, Verdict
from sstune.storage import write_text

LITTLE = 1.0  # points
HIDDEN = {
    f"< {LITTLE:g}": (0.0, LITTLE),
    f"{LITTLE:g} to {SOUGHT:g}": (LITTLE, SOUGHT),
    f">= {SOUGHT:g}": (SOUGHT, 101.0),
}
NOT_VALID = "not valid"  # outputs are random, or depend on the batch


def hidden_points(truth: pd.DataFrame, network: str, dataset: str) -> tuple[float, str]:
    """The largest gap of a network over eps, in points, and where it is.

    Raises:
        KeyError: the network's truth has not been measured on this dataset.
    """
    found = truth[(truth["network"] == network) & (truth["dataset"] == dataset)]
    if found.empty:
        raise KeyError(f"{network} on {dataset} is not in the table of truths")
    worst = found.sort_values("gap").iloc[-1]
    return float(worst["gap"]), str(worst["eps"])


def line(row: Row, truth: pd.DataFrame) -> dict[str, Any]:
    """One audit."""
    name = row["config"]["backbone"]["name"].partition(":")[2]
    entry, dataset, audit = GALLERY[name], row["config"]["dataset"]["label"], row["audit"]
    gap, at = hidden_points(truth, name, dataset)
    kind = next(said for said, (low, high) in HIDDEN.items() if low <= gap < high)
    return {
        "network": name,
        "family": entry.family,
        "dataset": dataset,
        "n": row["measurements"][0]["n"],
        "black_box_n": row["config"]["audit"]["black_box_n"],
        "eps": " ".join(row["config"]["attack"]["eps"]),
        "hidden": NOT_VALID if entry.is_random or name == "noise_by_position" else kind,
        "gap": gap,
        "at": at,
        "verdict": audit["verdict"],
        "because": " ".join(audit["because"]),
        "wrong": is_wrong(audit["verdict"], gap),
        "seconds": round(row["seconds"], 1),
    }


def is_wrong(verdict: str, gap: float) -> bool:
    """Whether a verdict contradicts what is hidden, in points."""
    return gap >= SOUGHT if verdict == Verdict.not_masked else verdict == Verdict.masked and gap < LITTLE


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="directories of audits")
    parser.add_argument("--out", type=Path, default=Path("results/gallery"))
    asked = parser.parse_args()
    truth = read(asked.out / "truth.csv")
    rows = [row for row in read_rows(asked.runs) if row.get("audit")]
    lines = pd.DataFrame([line(row, truth) for row in rows])
    lines = lines.sort_values(["dataset", "family", "network", "n", "eps"], ignore_index=True)
    write_text(asked.out / "verdicts.csv", lines.to_csv(index=False, lineterminator="\n"))
    print(pd.crosstab([lines["dataset"], lines["hidden"]], lines["verdict"]).to_string())
    wrong = lines[lines["wrong"]]
    print(f"{len(wrong)} of {len(lines)} verdicts are wrong")
    if len(wrong):
        print(wrong[["network", "dataset", "n", "eps", "gap", "verdict", "because"]].to_string(index=False))


if __name__ == "__main__":
    main()
