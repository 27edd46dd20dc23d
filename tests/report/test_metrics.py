"""Metrics other than accuracy: each has intervals, tests, blocks and figures of its own."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy import stats

from sstune.packing import pack, pack_values, unpack_values
from sstune.report.effort import metric_against_effort
from sstune.report.figures import metric_against_eps
from sstune.report.measurements import frame, interval
from sstune.report.pairs import gap_table, paired_table
from sstune.report.rows import read_rows, write_rows
from sstune.report.styles import CHANCE
from sstune.report.tables import table, to_csv, to_latex, to_text, wide
from sstune.report.transfer import transfer_map
from sstune.schema import RequestError

N = 40


def values_of(key: int) -> np.ndarray:
    """(N,) average precisions, as a row holds them."""
    return np.random.default_rng(key).beta(2, 2, N).astype(np.float32).astype(np.float64)


def retrieval(make: Any, rule: str = "usf", seed: int = 0, each: bool = True, **changes: Any) -> Any:
    """An attack on a network that is measured by mAP: clean, through the rule's and the exact gradient.

    With ``each``, the value of each sample, from ``values_of``; otherwise an interval of 0.1 around it.
    """
    parent = make.finetune(rule, seed, task__name="hashing", **changes)
    row = make.attack(parent, n=N)
    row["datasets"] = {"test": {"n": 10000, "digest": "d" * 64, "attacked": "a" * 64}}
    for number, entry in enumerate(row["measurements"]):
        values = values_of(100 * (rule == "bp") + 10 * seed + number)
        del entry["correct"]
        entry |= {"metric": "mAP", "value": float(values.mean()), "more": {"mAP@50": 0.5}}
        entry |= (
            {"values": pack_values(values)}
            if each
            else {"interval": [entry["value"] - 0.1, entry["value"] + 0.1]}
        )
    return row


def bootstrapped(values: np.ndarray) -> tuple[Any, float]:
    """Percentile interval, and two-sided p of the mean 0, by scipy's bootstrap; to be compared roughly."""
    found = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(0)
    )
    drawn = found.bootstrap_distribution
    low, high = found.confidence_interval
    p = min(1, 2 * min((drawn <= 0).mean(), (drawn >= 0).mean()))
    return pytest.approx((low, high), abs=0.04 * (high - low)), p


def counted(make: Any, rule: str = "usf") -> Any:
    """An attack on a network that is measured by accuracy, with the outcome of each sample."""
    row = make.attack(make.finetune(rule), n=8)
    return make.remember(row, {"clean": "xxxxxxx.", "rule 8/255": "x.xxxx..", "exact 8/255": "x......."})


def lines(table: pd.DataFrame, *columns: str) -> list[tuple[Any, ...]]:
    return list(table[list(columns)].itertuples(index=False, name=None))


class TestValuesOfEachSample:
    def test_the_interval_is_a_bootstrap_over_samples(self, make: Any) -> None:
        found = table(frame([retrieval(make)]))
        for number, line in enumerate(found.to_dict("records")):
            values = values_of(number)
            assert line["mean"] == pytest.approx(values.mean())
            assert (line["low"], line["high"]) == bootstrapped(values)[0]

    def test_seeds_are_averaged_for_each_sample(self, make: Any) -> None:
        found = table(frame([retrieval(make, seed=seed) for seed in (0, 1)]))
        (line,) = found[found["gradient"] == "rule"].to_dict("records")
        mean = (values_of(1) + values_of(11)) / 2
        assert (line["seeds"], line["mean"]) == (2, pytest.approx(mean.mean()))
        assert line["std"] == pytest.approx(abs(values_of(1).mean() - values_of(11).mean()) / math.sqrt(2))
        assert (line["low"], line["high"]) == bootstrapped(mean)[0]

    def test_the_gap_has_a_paired_interval(self, make: Any) -> None:
        (line,) = gap_table(frame([retrieval(make)])).to_dict("records")
        differences = 100 * (values_of(1) - values_of(2))
        assert line["gap_points"] == pytest.approx(differences.mean())
        assert (line["low_points"], line["high_points"]) == bootstrapped(differences)[0]

    def test_pairs_have_a_paired_bootstrap_and_no_counts(self, make: Any) -> None:
        found = paired_table(frame([retrieval(make), retrieval(make, "bp")]))
        assert lines(found, "a", "gradient_a", "b", "gradient_b") == [
            ("bp", "", "usf weight_rms", ""),
            ("bp", "rule", "bp", "exact"),
            ("bp", "rule", "usf weight_rms", "rule"),
            ("bp", "exact", "usf weight_rms", "exact"),
            ("usf weight_rms", "rule", "usf weight_rms", "exact"),
        ]
        line, differences = found.iloc[2], 100 * (values_of(101) - values_of(1))
        expected, p = bootstrapped(differences)
        assert line["difference_points"] == pytest.approx(differences.mean())
        assert (line["low_points"], line["high_points"]) == expected
        assert line["p"] == pytest.approx(p, abs=0.02)
        assert found[["both", "only_a", "only_b", "neither"]].isna().all(axis=None)


class TestAnIntervalOnly:
    def test_it_is_the_one_that_was_measured(self, make: Any) -> None:
        found = table(frame([retrieval(make, each=False)]))
        assert list(found["high"] - found["mean"]) == pytest.approx([0.1] * 3)
        assert list(found["mean"] - found["low"]) == pytest.approx([0.1] * 3)

    def test_of_several_seeds_it_is_as_wide_as_one(self, make: Any) -> None:
        found = table(frame([retrieval(make, seed=seed, each=False) for seed in (0, 1)]))
        assert list(found["high"] - found["mean"]) == pytest.approx([0.1] * 3)

    def test_nothing_is_paired(self, make: Any) -> None:
        cells = frame([retrieval(make, each=False), retrieval(make, "bp", each=False)])
        assert len(paired_table(cells)) == 0
        gaps = gap_table(cells)
        assert list(gaps["gap_points"]) == pytest.approx(
            [100 * (values_of(key + 1) - values_of(key + 2)).mean() for key in (100, 0)]
        )
        assert gaps[["low_points", "high_points"]].isna().all(axis=None)

    def test_without_any_the_cells_are_empty(self, make: Any) -> None:
        row = retrieval(make, each=False)
        for entry in row["measurements"]:
            del entry["interval"]
        assert to_csv(table(frame([row]))).split("\n")[1].endswith(f",1,{N},{values_of(0).mean():.6f},,,")


class TestMixed:
    @pytest.fixture
    def cells(self, make: Any) -> pd.DataFrame:
        return frame([retrieval(make), counted(make), retrieval(make, "bp"), counted(make, "bp")])

    def test_a_csv_names_the_metric_of_each_line(self, cells: pd.DataFrame, make: Any) -> None:
        alone = {
            "accuracy": frame([counted(make), counted(make, "bp")]),
            "mAP": frame([retrieval(make), retrieval(make, "bp")]),
        }
        for make_table in (table, wide, gap_table, paired_table):
            found = list(csv.DictReader(io.StringIO(to_csv(make_table(cells)))))
            expected = [
                {"metric": metric, **line}
                for metric, part in alone.items()
                for line in csv.DictReader(io.StringIO(to_csv(make_table(part))))
            ]
            assert found == expected

    def test_metrics_of_one_network_are_not_mixed(self, make: Any) -> None:
        """The same attacks on the same samples, counted and as averages."""
        average, hits = retrieval(make), retrieval(make)
        for entry in hits["measurements"]:
            outcomes = unpack_values(entry.pop("values"), N) > 0.5
            del entry["metric"], entry["value"]
            entry |= {"correct": int(outcomes.sum()), "outcomes": pack(outcomes)}
        matches = json.loads(json.dumps(hits))
        for entry in matches["measurements"]:
            entry["metric"] = "exact match"
        alone = {"accuracy": hits, "exact match": matches, "mAP": average}
        together = [entry for row in alone.values() for entry in row["measurements"]]
        for make_table in (table, gap_table, paired_table):
            found = make_table(frame([average | {"measurements": together}]))
            assert list(dict.fromkeys(found["metric"])) == list(alone)
            for metric, row in alone.items():
                part = found[found["metric"] == metric].drop(columns="metric").reset_index(drop=True)
                expected = make_table(frame([row])).drop(columns="metric", errors="ignore")
                pd.testing.assert_frame_equal(part, expected, check_dtype=False)

    def test_text_and_latex_have_a_block_for_each(self, cells: pd.DataFrame) -> None:
        accuracy, average = to_text(cells).split("mean average precision in %")[0].split("accuracy in %")
        assert "87.5" in accuracy
        assert "87.5" not in average
        assert f"{100 * values_of(0).mean():.1f}" in average
        tabulars = to_latex(cells).split(r"\end{tabular}")
        assert ["accuracy in %" in text for text in tabulars] == [True, False, False]
        assert ["mean average precision in %" in text for text in tabulars] == [False, True, False]

    def test_each_has_its_figures(self, cells: pd.DataFrame, drawn: list[Figure], tmp_path: Path) -> None:
        assert [path.name for path in metric_against_eps(cells, tmp_path)] == [
            *("accuracy.png", "accuracy.svg", "mAP.png", "mAP.svg")
        ]
        labels = [figure.axes[0].get_ylabel() for figure in drawn]
        assert labels == ["accuracy (%)", "mean average precision (%)"]
        chances = [
            [line for line in figure.axes[0].get_lines() if line.get_color() == CHANCE["color"]]
            for figure in drawn
        ]
        legends = [[text.get_text() for text in figure.legends[0].get_texts()] for figure in drawn]
        assert [len(found) for found in chances] == [1, 0]
        assert ["chance (10 %)" in found for found in legends] == [True, False]
        curves = [line.get_ydata()[-1] for line in drawn[1].axes[0].get_lines()]
        assert sorted(curves) == pytest.approx(
            sorted(100 * values_of(key).mean() for key in (1, 2, 101, 102))
        )

    def test_only_counts_have_steps(self, make: Any, tmp_path: Path) -> None:
        kept = {"clean": "xxxx", "rule 8/255": "xx..", "exact 8/255": "xx.."}
        found = {"rule 8/255": [[1, 2]], "exact 8/255": [[2, 2]]}
        hits = make.remember(make.attack(make.finetune()), kept, found)
        for entry in hits["measurements"]:
            entry["metric"] = "exact match"
        floats = retrieval(make)
        for entry in floats["measurements"][1:]:
            entry["found"] = [[1, 3]]
        written = metric_against_effort(frame([hits, floats]), tmp_path)
        assert [path.name for path in written] == ["steps-exact_match.png", "steps-exact_match.svg"]

    def test_transfer_has_a_map_for_each(self, make: Any, drawn: list[Figure], tmp_path: Path) -> None:
        rows = [retrieval(make), counted(make)]
        for row in rows:
            for entry in row["measurements"][1:]:
                entry |= {"source": f"net@{entry['gradient']}", "gradient": "surrogate"}
        written = transfer_map(frame(rows), tmp_path / "transfer")
        assert [path.stem for path in written] == ["transfer"] * 2 + ["transfer-mAP"] * 2
        titles = [figure.get_suptitle() for figure in drawn]
        assert [title.split(" (%)")[0] for title in titles] == [
            *("robust accuracy", "robust mean average precision")
        ]


class TestUnknown:
    def test_a_count_of_any_name_is_a_count(self, make: Any) -> None:
        """Another's metric: shown by its name, with Wilson's interval, McNemar's test, and no chance."""
        accuracy, other = counted(make), counted(make)
        for entry in other["measurements"]:
            entry["metric"] = "exact match"
        for make_table in (table, gap_table, paired_table):
            one, two = make_table(frame([accuracy])), make_table(frame([other]))
            assert (two["metric"] == "exact match").all()
            pd.testing.assert_frame_equal(one, two.drop(columns="metric"))
        assert to_text(frame([other])) == to_text(frame([accuracy])).replace("accuracy in", "exact match in")
        assert frame([other])["chance"].isna().all()

    @pytest.mark.parametrize("name", ["=1+1", "a\nb", "\x1b[31m\0", "../x", "$\\frac$", "caf\udce9"])
    def test_a_hostile_name_is_shown(self, make: Any, tmp_path: Path, name: str) -> None:
        row = retrieval(make)
        for entry in row["measurements"]:
            entry["metric"] = name
        cells = frame([row])
        assert all(line.isprintable() for line in to_text(cells).split("\n"))
        assert not re.search(r"(^|,)=", to_csv(table(cells)))
        written = metric_against_eps(cells, tmp_path)
        assert sorted(tmp_path.iterdir()) == sorted(written)
        assert len(written) == 2


class TestReading:
    def test_what_is_written_is_read(self, make: Any, tmp_path: Path) -> None:
        rows = [retrieval(make), retrieval(make, "bp", each=False), counted(make)]
        write_rows(rows, tmp_path / "rows.jsonl")
        assert sorted(read_rows([tmp_path / "rows.jsonl"]), key=json.dumps) == sorted(rows, key=json.dumps)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"value": 1.5}, "value: expected a number from 0 to 1, found 1.5"),
            ({"value": None}, "None correct of 40 are not valid counts"),
            ({"value": True}, "value: expected a number"),
            ({"n": 0}, "n: expected a number of samples, found 0"),
            ({"n": 39}, "160 bytes are not the values of 39 samples"),
            ({"values": pack_values([0.5] * N)}, "the mean of the values of clean is not"),
            ({"values": pack_values([2.0] * N)}, "outside [0, 1]"),
            ({"values": pack_values([math.nan] * N)}, "outside [0, 1]"),
            ({"outcomes": pack([True] * N)}, "outcomes of clean do not have None correct"),
            ({"interval": [0.5]}, "measurements.interval: expected list of 2 int or float"),
            ({"interval": [0.6, 0.5]}, "interval of clean is not in [0, 1]: 0.6 to 0.5"),
            ({"interval": [-0.1, 0.5]}, "interval of clean is not in [0, 1]: -0.1 to 0.5"),
            ({"metric": 3}, "measurements.metric: expected str"),
            ({"more": {"mAP@50": "high"}}, "measurements.more: expected int or float"),
        ],
    )
    def test_what_contradicts_itself_is_refused(
        self, make: Any, tmp_path: Path, changes: dict[str, Any], message: str
    ) -> None:
        row = retrieval(make)
        row["measurements"][0] |= changes
        (tmp_path / "rows.jsonl").write_text(json.dumps(row))
        with pytest.raises(RequestError, match=re.escape(message)):
            read_rows([tmp_path / "rows.jsonl"])

    def test_rows_that_disagree_are_refused(self, make: Any) -> None:
        one = retrieval(make, each=False)
        other = json.loads(json.dumps(one)) | {"identity": "f" * 64}
        other["measurements"][0]["value"] += 1e-6  # rounding
        assert len(frame([one, other])) == 3
        other["measurements"][0]["value"] += 0.01
        with pytest.raises(RequestError, match=r"disagree: clean .*mAP 0\.\d+ and 0\.\d+ of 40"):
            frame([one, other])


def test_other_samples_of_a_seed_have_no_common_interval(make: Any) -> None:
    cells = frame([retrieval(make, seed=seed) for seed in (0, 1)])
    clean = cells[cells["attack"] == "clean"].assign(samples=["a", "b"])
    assert np.isnan(interval(clean.to_dict("records"))).all()
