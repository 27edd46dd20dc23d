"""Reports of networks for hashing: names of variants, ``retrieval.csv``, and the curves of a ranking."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats

from sstune.packing import pack_values
from sstune.report import retrieval
from sstune.report.figures import metric_against_eps
from sstune.report.measurements import frame
from sstune.report.pairs import gap_table, paired_table
from sstune.report.retrieval import COLUMNS, retrieval_curves, retrieval_table
from sstune.report.styles import COLOURS, STYLES
from sstune.report.tables import table, to_csv, to_latex, to_text

N = 40
EPS = ("2/255", "4/255", "8/255")


def ap_of(key: int) -> np.ndarray:
    """(N,) average precisions."""
    return np.random.default_rng(key).beta(2, 2, N).astype(np.float32).astype(np.float64)


def ranked(make: Any, rule: str = "usf", *, k: str = "all", seed: int = 0, **task: Any) -> Any:
    """An attack on a network for hashing, at three eps through both gradients; the larger ``seed``, rule and
    measurement, the worse its curves."""
    settings = {"loss": "csq", "bits": 32, "top_k": None if k == "all" else int(k)} | task
    parent = make.finetune(
        rule, seed, task__name="hashing", **{f"task__{key}": v for key, v in settings.items()}
    )
    row = make.attack(parent, "pgd", n=N, counts=dict.fromkeys(EPS, (0, 0)))
    digests = {"n": 100, "digest": "d" * 64}
    row["datasets"] = {"test": {**digests, "attacked": "a" * 64}, "database": digests}
    for number, entry in enumerate(row["measurements"]):
        values = ap_of(100 * (rule == "bp") + 10 * seed + number)
        del entry["correct"]
        entry |= {"metric": f"mAP@{k}", "value": float(values.mean()), "values": pack_values(values)}
        level = 0.9 - 0.1 * number - 0.02 * seed
        entry["more"] = {f"mAP_stable@{k}": level, "P@radius2": level, "saturated": 0.25}
        entry["more"] |= {f"P@{n}": level * 100 / n for n in range(100, 1001, 100)}
        entry["more"] |= {f"R@{n}": n / 1000 for n in range(100, 1001, 100)}
        entry["curves"] = {"precision at recall": [level * (1 - i / 200) for i in range(100)]}
        entry |= {"zero_gradients": 0.125} if entry["attack"] else {}
    row["measurements"][0]["more"]["bound mainstay"] = 0.05
    return row


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


class TestNames:
    def variants(self, rows: list[Any]) -> list[str]:
        return list(dict.fromkeys(table(frame(rows))["variant"]))

    def test_loss_and_bits_are_always_named(self, make: Any) -> None:
        assert self.variants([ranked(make)]) == ["csq 32 bits"]
        assert to_text(frame([ranked(make)])).startswith(
            "backbone resnet20, dataset cifar10-jpeg, scale weight_rms, variant csq 32 bits\n"
        )

    def test_they_tell_networks_apart_in_the_order_of_bits(self, make: Any) -> None:
        kinds = [("csq", 8), ("csq", 64), ("dpsh", 16), ("csq", 16), ("csq", 128)]
        rows = [ranked(make, loss=loss, bits=bits) for loss, bits in kinds]
        expected = ["csq 8 bits", "csq 16 bits", "csq 64 bits", "csq 128 bits", "dpsh 16 bits"]
        assert self.variants(rows) == expected
        assert [line["variant"] for line in read(to_csv(retrieval_table(frame(rows))))[::7]] == expected

    def test_other_differences_follow(self, make: Any) -> None:
        rows = [ranked(make, quantization=value) for value in (0.1, 0.2)]
        assert self.variants(rows) == [f"csq 32 bits task.quantization={value}" for value in (0.1, 0.2)]

    def test_ancestors_with_the_same_loss_and_bits_are_not_named(self, make: Any) -> None:
        rows = []
        for bits in (16, 32):
            row = ranked(make, bits=bits)
            trained = json.loads(json.dumps(row["lineage"][-1]))
            trained["command"], trained["config"]["command"] = "train", "train"
            rows.append(row | {"lineage": [trained, *row["lineage"][1:]]})
        assert self.variants(rows) == ["csq 16 bits", "csq 32 bits"]

    def test_other_databases_are_other_networks(self, make: Any) -> None:
        one, other = ranked(make), ranked(make)
        other["datasets"]["database"] = {"n": 200, "digest": "e" * 64}
        other["identity"] = "f" * 64
        other["config"]["seed"] = 1
        assert self.variants([one, other]) == [
            f"csq 32 bits datasets.database={digest * 8}" for digest in ("d", "e")
        ]

    def test_a_hostile_number_of_bits_does_no_harm(self, make: Any) -> None:
        assert self.variants([ranked(make, bits="²")]) == ["csq ² bits"]


class TestTables:
    def test_rows_with_different_k_are_not_mixed(self, make: Any) -> None:
        cells = frame([ranked(make), ranked(make, k="5000")])
        assert "mAP@5000 in %" in to_text(cells)
        assert to_text(cells).count("in %; n = 40") == 2
        assert to_latex(cells).count(r"\begin{tabular}") == 2
        for found in (table(cells), gap_table(cells), paired_table(cells), retrieval_table(cells)):
            assert list(dict.fromkeys(found["metric"])) == ["mAP@5000", "mAP@all"]

    def test_one_line_for_each_measurement_and_seed(self, make: Any) -> None:
        rows = [ranked(make, seed=seed) for seed in (0, 1)]
        text = to_csv(retrieval_table(frame(rows)))
        lines = read(text)
        assert list(lines[0]) == COLUMNS
        assert len(lines) == 2 * 7
        assert [line["seed"] for line in lines[:4]] == ["0", "1"] * 2
        by_cell = {(line["seed"], line["gradient"], line["eps"]): line for line in lines}
        attacked = by_cell["1", "exact", "4/255"]
        values = ap_of(10 + 4)
        assert float(attacked["mAP"]) == pytest.approx(values.mean(), abs=1e-6)
        expected = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1)
        found = float(attacked["low"]), float(attacked["high"])
        assert found == pytest.approx(expected.confidence_interval, abs=0.01)
        assert attacked["mAP_stable"] == attacked["P@100"] == "0.480000"
        assert (attacked["P@1000"], attacked["R@300"]) == ("0.048000", "0.300000")
        assert (attacked["saturated"], attacked["zero_gradients"]) == ("0.250000", "0.125000")
        assert attacked["mAP_refined"] == attacked["NDCG@1000"] == attacked["bound mainstay"] == ""
        assert by_cell["0", "", ""]["bound mainstay"] == "0.050000"

    def test_figures_that_are_not_known_follow(self, make: Any) -> None:
        row = ranked(make)
        row["measurements"][0]["more"]["P@7"] = 0.5
        assert list(retrieval_table(frame([row]))) == [*COLUMNS, "P@7"]

    def test_there_is_none_without_retrieval(self, make: Any, tmp_path: Path) -> None:
        cells = frame([make.attack(make.finetune())])
        assert len(retrieval_table(cells)) == 0
        assert retrieval_curves(cells, tmp_path) == []

    def test_rule_and_exact_are_paired_on_the_same_queries(self, make: Any) -> None:
        found = paired_table(frame([ranked(make), ranked(make, "bp")]))
        line = found[(found["eps"] == "4/255") & (found["a"] == found["b"])].iloc[1]
        assert line["a"] == "usf weight_rms csq 32 bits"
        assert (line["gradient_a"], line["gradient_b"]) == ("rule", "exact")
        differences = 100 * (ap_of(3) - ap_of(4))
        drawn = stats.bootstrap((differences,), np.mean, n_resamples=20_000, method="percentile", rng=1)
        assert (line["low_points"], line["high_points"]) == pytest.approx(drawn.confidence_interval, abs=0.8)
        shares = [(side * drawn.bootstrap_distribution <= 0).mean() for side in (1, -1)]
        assert line["p"] == pytest.approx(2 * min(shares), abs=0.02)


class TestCurves:
    @pytest.fixture
    def figures(self, monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
        found: list[Figure] = []

        class Recorded(Figure):
            def __init__(self, *arguments: Any, **options: Any) -> None:
                super().__init__(*arguments, **options)
                found.append(self)

        monkeypatch.setattr(retrieval, "Figure", Recorded)
        return found

    def test_clean_and_the_middle_eps_of_each_attack(
        self, make: Any, figures: list[Figure], tmp_path: Path
    ) -> None:
        cells = frame([ranked(make, rule, seed=seed) for rule in ("bp", "usf") for seed in (0, 1)])
        written = retrieval_curves(cells, tmp_path)
        assert [path.name for path in written] == ["retrieval.png", "retrieval.svg"]
        with Image.open(written[0]) as image:
            assert image.width > 800
        (figure,) = figures
        clean, attacked, clean_at_n, attacked_at_n = figure.axes
        assert [clean.get_title(), attacked.get_title()] == ["clean", "pgd, eps 4/255"]
        assert [axes.get_xlabel() for axes in figure.axes] == ["recall (%)"] * 2 + ["N"] * 2
        assert len(clean.get_lines()) == len(clean_at_n.get_lines()) == 2
        looks = [(line.get_color(), line.get_linestyle()) for line in attacked.get_lines()]
        assert sorted(looks) == sorted(
            (COLOURS[rule], str(STYLES[gradient])) for rule in ("bp", "usf") for gradient in ("rule", "exact")
        )
        rule = attacked.get_lines()[looks.index((COLOURS["usf"], "--"))]
        level = 0.9 - 0.3 - 0.01  # the fourth measurement, mean of two seeds
        assert list(rule.get_xdata()) == pytest.approx(list(range(1, 101)))
        assert list(rule.get_ydata()) == pytest.approx([100 * level * (1 - i / 200) for i in range(100)])
        at_n = attacked_at_n.get_lines()[looks.index((COLOURS["usf"], "--"))]
        assert list(at_n.get_xdata()) == list(range(100, 1001, 100))
        assert list(at_n.get_ydata()) == pytest.approx([100 * level * 100 / n for n in range(100, 1001, 100)])
        legend = [text.get_text() for text in figure.legends[0].get_texts()]
        assert legend == ["bp (csq 32 bits)", "usf (csq 32 bits)", "rule gradient", "exact gradient"]

    def test_of_two_eps_the_smaller_one(self, make: Any, figures: list[Figure], tmp_path: Path) -> None:
        row = ranked(make)
        row["measurements"] = [entry for entry in row["measurements"] if entry["eps"] != "2/255"]
        retrieval_curves(frame([row]), tmp_path)
        assert figures[0].axes[1].get_title() == "pgd, eps 4/255"

    def test_a_row_of_panels_for_each_scale(self, make: Any, figures: list[Figure], tmp_path: Path) -> None:
        rows = [ranked(make), ranked(make, "bp"), ranked(make, "frsf")]
        for part in (rows[2], rows[2]["lineage"][-1]):
            part["config"]["rule"]["scale"] = "xavier"
        retrieval_curves(frame(rows), tmp_path)
        titles = [axes.get_title() for axes in figures[0].axes if axes.get_title()]
        assert titles == [
            f"{name}\nscale {scale}"
            for scale in ("weight_rms", "xavier")
            for name in ("clean", "pgd, eps 4/255")
        ]

    def test_networks_without_attacks_have_clean_curves(
        self, make: Any, figures: list[Figure], tmp_path: Path
    ) -> None:
        row = ranked(make)
        row["measurements"] = row["measurements"][:1]
        assert len(retrieval_curves(frame([row]), tmp_path)) == 2
        assert [axes.get_title() for axes in figures[0].axes] == ["clean", ""]

    def test_several_metrics_have_figures_of_their_own(self, make: Any, tmp_path: Path) -> None:
        cells = frame([ranked(make), ranked(make, k="5000")])
        names = [path.name for path in retrieval_curves(cells, tmp_path) if path.suffix == ".png"]
        assert names == ["retrieval-mAP_5000.png", "retrieval-mAP_all.png"]
        names = [path.name for path in metric_against_eps(cells, tmp_path) if path.suffix == ".png"]
        assert names == ["mAP_5000.png", "mAP_all.png"]

    def test_rows_without_curves_are_left_out(self, make: Any, tmp_path: Path) -> None:
        row = ranked(make)
        for entry in row["measurements"]:
            del entry["curves"]
        assert retrieval_curves(frame([row]), tmp_path) == []
