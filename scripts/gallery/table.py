"""The table of truths: a row for each network and eps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pandas as pd
from torch import Tensor

from scripts.gallery.entry import Entry, base_label
from sstune.schema import RunConfig
from sstune.storage import write_text


@dataclass(frozen=True)
class Row:
    """What is left of ``n`` samples at one eps: in percent, and as numbers of samples.

    Args:
        own: by PGD-20 of ``attack=pgd attack.steps=20`` through the network's own gradient.
        adaptive: by the union of this attack and the adaptive one.
        gap: own less adaptive, in points: what the network's gradient hides.
    """

    network: str
    family: str
    dataset: str
    base: str
    n: int
    eps: str
    clean: float
    own: float
    adaptive: float
    gap: float
    n_clean: int
    n_own: int
    n_adaptive: int
    seconds: float

    @classmethod
    def of(
        cls, entry: Entry, config: RunConfig, eps: str, left: tuple[Tensor, Tensor, Tensor], seconds: float
    ) -> Row:
        """The row of what is ``left``, (n,) bool: without an attack, by own PGD, by both attacks."""
        n, (clean, own, both) = len(left[0]), (int(flags.sum()) for flags in left)
        return cls(
            network=entry.name,
            family=entry.family,
            dataset=config.dataset.label,
            base=base_label(entry.base),
            n=n,
            eps=eps,
            clean=round(100 * clean / n, 2),
            own=round(100 * own / n, 2),
            adaptive=round(100 * both / n, 2),
            gap=round(100 * (own - both) / n, 2),
            n_clean=clean,
            n_own=own,
            n_adaptive=both,
            seconds=round(seconds, 1),
        )


KEY = ["network", "dataset", "base", "n"]


def read(path: Path) -> pd.DataFrame:
    """The rows in a table of truths; none if there is no file."""
    if path.exists():
        return pd.read_csv(path)
    return pd.DataFrame(columns=[item.name for item in fields(Row)])


def append(path: Path, rows: Sequence[Row]) -> None:
    """Append rows to a table, all of them or none."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    more = pd.DataFrame([asdict(row) for row in rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text + more.to_csv(index=False, header=not text, lineterminator="\n"))
