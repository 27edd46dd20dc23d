"""``sstune attack attack=audit`` of a network for retrieval: row, page and tables."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sstune.commands import execute
from sstune.composition import request
from sstune.packing import unpack, unpack_values
from sstune.quantities import parse_eps
from sstune.report.audit_figures import attack_records, audit_figures
from sstune.report.variants import attack_settings
from sstune.row import value_of
from sstune.schema.audit import CHECKS
from sstune.statistics import mean_interval

Ask = Callable[..., Any]
SMALL = [
    "dataset=digits", "task=hashing", "task.bits=16", "split.n_query=24", "split.n_train=80",
    "split.n_val=10", "backbone=mlp", "epochs=3", "threads=1", "device=cpu",
]  # fmt: skip
AUDIT = [
    "attack=audit", "attack.eps=[0.05,0.1]", "audit.black_box_n=60", "audit.estimate_queries=3000",
    "threads=1", "device=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Runs of two seeds."""
    out = f"out={tmp_path_factory.mktemp('retrieval')}"
    one, two = (execute(request("train", [*SMALL, out, f"seed={seed}"])).directory for seed in (0, 1))
    return one, two


def row_of(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("runs/attack/audit-*/result.json")
    row: dict[str, Any] = json.loads(path.read_text())
    return row


def plain(html: str) -> str:
    """The text of a page without its drawings."""
    html = re.sub(r"<(svg|style).*?</\1>", " ", html, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html).replace("\N{NO-BREAK SPACE}", " "))


class TestOfFrsf:
    @pytest.fixture
    def answer(self, ask: Ask, networks: tuple[Path, Path]) -> Any:
        return ask(
            "attack", *AUDIT, f"init_from={networks[0]}", f"audit.surrogate={networks[1]}", "rule=frsf"
        )

    def test_row_page_and_tables(self, ask: Ask, answer: Any, tmp_path: Path) -> None:
        assert (answer.status, answer.errors) == (0, [])
        row = row_of(tmp_path)
        self.check_row(row)
        self.check_text(answer.out)
        (page,) = tmp_path.glob("runs/attack/*/audit.html")
        self.check_page(plain(page.read_text()), row)
        self.check_report(ask, row, tmp_path)
        (directory,) = tmp_path.glob("runs/attack/*")
        assert (directory / "images.npz").exists()
        assert (directory / "images.png").exists()

    def check_row(self, row: dict[str, Any]) -> None:
        found = row["audit"]
        assert found["verdict"] == "MASKED"
        assert "D1" in found["because"]
        assert [check["id"] for check in found["checks"]] == list(CHECKS)
        assert found["not_run"] == dict.fromkeys(
            ["D12", "D13", "D14", "D7"], "not applicable to task=hashing"
        )
        assert (found["pgd"], found["chance"]) == ("mainstay", pytest.approx(0.1, abs=0.01))
        clean, *attacked = row["measurements"]
        assert {(one["attack"], one["gradient"], one["eps"]) for one in attacked} == {
            *(("mainstay", gradient, eps) for gradient in ("rule", "exact") for eps in ("0.05", "0.1")),
            *(("audit", None, eps) for eps in ("0.05", "0.1")),
        }
        names = {cell["attack"] for cell in found["cells"]}
        assert {"fgsm loss=mainstay", "mifgsm loss=mainstay", "noise", "mainstay restarts=3"} <= names
        worst = {
            one["eps"]: unpack_values(one["values"], 240) for one in attacked if one["attack"] == "audit"
        }
        least = unpack_values(clean["values"], 240)
        for eps in ("0.05", "0.1"):
            for one in [*attacked, *found["cells"]]:
                assert one["metric"] == "mAP@all"
                assert "correct" not in one
                values = unpack_values(one["values"], one["n"])
                assert one["value"] == pytest.approx(values.mean(), abs=1e-6)
                if parse_eps(one["eps"]) <= parse_eps(eps) and one["attack"] != "audit":
                    on = unpack(one["made_on"], 240) if "made_on" in one else np.ones(240, bool)
                    least[on] = np.minimum(least[on], values)
            assert worst[eps] == pytest.approx(least, abs=1e-6)
        d1 = next(check for check in found["checks"] if check["id"] == "D1")
        eps = d1["text"].split()[1]
        by_view = {
            one["gradient"]: one["value"]
            for one in [*attacked, *found["cells"]]
            if (one["attack"], one["eps"]) == ("mainstay", eps)
        }
        assert d1["figure"] == pytest.approx(100 * (by_view["rule"] - by_view["exact"]), abs=1e-3)

    def check_text(self, out: str) -> None:
        assert "mAP@all falls with eps" in out
        assert "MASKED (D1" in out
        assert "D7 did not run: not applicable to task=hashing" in out
        assert "accuracy" not in out

    def check_page(self, text: str, row: dict[str, Any]) -> None:
        assert "mAP@all in % (95 % interval)" in text
        assert "mAP@all against eps (not to scale)" in text
        assert "database images that are nearest" in text
        assert "ccuracy" not in text
        worst = row["measurements"][-1]
        low, high = mean_interval(unpack_values(worst["values"], 240))
        assert f"{100 * worst['value']:.1f} ({100 * low:.1f} to {100 * high:.1f})" in text
        (noise,) = [one for one in attack_records(row) if one.attack == "noise"]  # type: ignore[arg-type]
        assert f"PGD on the same: {100 * (noise.by_pgd or 0) / 60:.1f}" in text
        ((_, figure),) = audit_figures(row)  # type: ignore[arg-type]
        (axes,) = figure.axes
        assert axes.get_ylabel() == "mAP@all (%)"
        drawn = [line.get_label() for line in axes.get_legend_handles_labels()[0]]
        assert f"chance ({100 * row['audit']['chance']:.3g} %)" in drawn
        assert "fgsm loss=mainstay, rule" in drawn
        assert not any("restarts" in str(label) for label in drawn)

    def check_report(self, ask: Ask, row: dict[str, Any], folder: Path) -> None:
        assert ask("report", "runs", "--out", "report").status == 0
        (line,) = csv.DictReader((folder / "report" / "audit.csv").open())
        assert (line["metric"], line["verdict"], line["n"]) == ("mAP@all", "MASKED", "240")
        assert "mlp-bp-s1@" in attack_settings(row)["audit.surrogate"]  # type: ignore[arg-type]
        for one in row["measurements"][1:]:
            eps, gradient = one["eps"], one["gradient"]
            column = f"worst case {eps}" if one["attack"] == "audit" else f"pgd {eps} {gradient}"
            assert float(line[column]) == pytest.approx(value_of(one), abs=1e-6)  # type: ignore[arg-type]


def test_of_bp_it_is_not_masked(ask: Ask, networks: tuple[Path, Path], tmp_path: Path) -> None:
    answer = ask("attack", *AUDIT, f"init_from={networks[0]}", "audit.strict=true")
    assert (answer.status, answer.errors) == (0, [])
    found = row_of(tmp_path)["audit"]
    assert (found["verdict"], found["because"]) == ("NOT MASKED", ["D16", "D4", "D5", "D8"])
