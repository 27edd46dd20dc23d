"""Figures that README and docs quote from results/ are those of the rows: each is made again."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pytest

from sstune.report.audit import audit_text
from sstune.report.measurements import frame
from sstune.report.rows import read_rows
from sstune.report.tables import to_text
from sstune.report.variants import joined

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def table_lines(text: str, n_columns: int) -> list[list[str]]:
    """Cells of every line of Markdown tables with so many columns, headers among them."""
    lines = [line.strip().strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines if len(line) == n_columns]


def numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"-?\d+(?:\.\d+)?", text)]


def test_the_quickstart_table() -> None:
    shown = next(block for block in re.findall(r"```text\n(.*?)```", page("README.md"), re.DOTALL))
    assert shown == to_text(frame(read_rows([RESULTS / "quickstart/rows.jsonl"])))


class TestAudits:
    @pytest.mark.parametrize(("name", "at_least"), [("README.md", 5), ("docs/robustness.md", 16)])
    def test_lines_of_checks(self, name: str, at_least: int) -> None:
        """A line may be shown alone, narrower than in its table, but with every word and figure."""
        (row,) = [
            row
            for row in read_rows([RESULTS / "audit/rows.jsonl"])
            if (row["config"]["rule"]["name"], row["config"]["rule"].get("scale")) == ("usf", "weight_rms")
        ]
        made = {" ".join(line.split()) for line in audit_text(row["audit"]).splitlines()}
        blocks = "\n".join(re.findall(r"```text\n(.*?)```", page(name), re.DOTALL))
        shown = re.findall(r"^(?:D\d+ .*|[A-Z ]*MASKED \(.*|id +check.*)$", blocks, re.MULTILINE)
        assert len(shown) >= at_least
        for line in shown:
            assert " ".join(line.split()) in made

    def test_the_table_of_verdicts(self) -> None:
        """Every line of audit.csv, and no other: accuracies, verdict and what it rests on."""
        columns = [f"pgd {eps}/255 {gradient}" for eps in (1, 2, 4, 8) for gradient in ("rule", "exact")]
        columns = ["clean", *columns, "worst case 2/255"]
        audits = pd.read_csv(RESULTS / "audit/audit.csv", keep_default_na=False)
        made = [
            (
                f"{line['verdict']} ({line['because'].replace(' ', ', ')})",
                [f"{100 * line[c]:.1f}" for c in columns],
            )
            for line in audits.to_dict("records")
        ]
        lines = table_lines(page("docs/robustness.md"), 9)[2:]
        shown = [(cells[-1], ", ".join(cells[2:-1]).split(", ")) for cells in lines]
        assert sorted(shown) == sorted(made)


def test_the_table_on_photographs() -> None:
    wide = pd.read_csv(RESULTS / "cifar10-jpeg/wide.csv", keep_default_na=False)
    columns = ["clean", *(f"pgd {eps}/255 {g}" for eps in (1, 2, 4, 8) for g in ("rule", "exact"))]
    made = [
        [line["rule"], line["scale"], *(f"{100 * float(line[c]):.1f}" for c in columns)]
        for line in wide.to_dict("records")
    ]
    assert table_lines(page("README.md"), 11)[2:] == made


class TestRetrieval:
    """Tables "LOSS at EPS" of docs/hashing.md: clean of all queries, then attacks of some of them."""

    csv = pd.read_csv(RESULTS / "hashing-cifar10-jpeg/retrieval.csv", keep_default_na=False)
    tables = re.findall(r"^(\w+) at (\d/255):\n\n((?:\|.*\n)+)", page("docs/hashing.md"), re.MULTILINE)

    @pytest.mark.parametrize(
        ("loss", "eps", "table"), tables, ids=[f"{loss} {eps}" for loss, eps, _ in tables]
    )
    def test_under_attack(self, loss: str, eps: str, table: str) -> None:
        made = self.csv[self.csv["variant"] == f"{loss} 32 bits"]
        header, *lines = table_lines(table, 14)
        assert len(lines) == 8  # a rule and seven networks
        for rule, scale, *cells in lines[1:]:
            found = made[(made["rule"] == rule) & (made["scale"] == scale) & (made["seed"] == 0)]
            for name, shown in zip(header[2:], cells, strict=True):
                attack, _, gradient = name.partition(" ")
                n, at = (1000, "") if attack == "clean" else (200, eps)
                of = found[(found["attack"] == attack) & (found["gradient"] == gradient)]
                of = of[(of["eps"] == at) & (of["n"] == n)]
                assert [shown] * (shown != "") == [f"{100 * value:.1f}" for value in of["mAP"]], (rule, name)

    def test_clean(self) -> None:
        clean = self.csv[(self.csv["attack"] == "clean") & (self.csv["n"] == 1000)]
        header, _, *lines = table_lines(page("docs/hashing.md"), 8)
        made = {
            (line["variant"].split()[0], joined(line["rule"], line["scale"])): f"{100 * line['mAP']:.1f}"
            for line in clean.to_dict("records")
        }
        for loss, *cells in lines:
            assert cells == [made[loss, name] for name in header[1:]]


class TestMnist:
    csv = pd.read_csv(RESULTS / "mnist_mlp.csv")

    def test_the_table(self) -> None:
        rules, _, ours, published = table_lines(page("README.md"), 8)
        five = self.csv[self.csv["seeds"] == 5].set_index("rule")
        assert ours[1:] == [f"{five.loc[rule, 'accuracy']:.2f}" for rule in rules[1:]]
        theirs = [five.loc[rule, "published"] for rule in rules[1:]]
        assert published[1:] == ["" if pd.isna(value) else f"{value:.2f}" for value in theirs]

    def test_the_angles(self) -> None:
        angles = self.csv.set_index(["rule", "seeds"]).filter(like="angle_")
        text = " ".join(page("results/README.md").split())

        def span(rule: str, seeds: int) -> str:
            return f"{angles.loc[(rule, seeds)].min():.1f} to {angles.loc[(rule, seeds)].max():.1f}"

        assert f"pfa ends at {span('pfa', 5)} degrees and pfa_o at {span('pfa_o', 5)}" in text
        assert f"pfa_o and kp end under 2 degrees and pfa at {span('pfa', 2)}" in text
        assert angles.loc[[("pfa_o", 2), ("kp", 5)]].max(axis=None) < 2


class TestBench:
    step = pd.read_csv(RESULTS / "bench/step.csv").set_index("rule")["ratio"].to_dict()

    def ratio(self, rule: str) -> str:
        """Of a rule as fine-tuning uses it; trained feedback away from V = W."""
        return f"{self.step.get(rule, self.step.get(f'{rule} start=random')):.2f}"

    def test_the_ratios_to_bp(self) -> None:
        (listed,) = re.findall(r"median ratio of 15 rounds: (.*?);", page("README.md"), re.DOTALL)
        for rule, shown in re.findall(r"(\w+) (\d\.\d\d)", listed):
            assert shown == self.ratio(rule), rule
        assert len(re.findall(r"(\w+) (\d\.\d\d)", listed)) == 10
        for cells in table_lines(page("docs/rules.md"), 5)[2:]:
            rule, shown = cells[0].strip("`"), cells[-1]
            assert shown == (self.ratio(rule) if rule != "bp" else "1"), rule

    @pytest.mark.parametrize("network", ["resnet20", "resnet18"])
    def test_training(self, network: str) -> None:
        measured = pd.read_csv(RESULTS / f"bench/train-{network}.csv").set_index(["rule", "side"])
        lines = [
            cells
            for cells in table_lines(page("docs/scaling.md"), 9)
            if cells[0].lower().startswith(network.replace("resnet", "resnet-"))
        ]
        assert len(lines) == 2
        for _, rule, plain, ours, speedup, waiting, plain_mfu, our_mfu, *beside in lines:
            one, other = measured.loc[(rule, "plain")], measured.loc[(rule, "ours")]
            assert [float(plain), float(ours)] == [one["images_per_second"], other["images_per_second"]]
            assert numbers(speedup) == other[["speedup", "speedup_q1", "speedup_q3"]].tolist()
            assert waiting == f"{100 * other['loader_share']:.1f}%"
            assert [plain_mfu, our_mfu] == [f"{100 * side['mfu']:.0f}%" for side in (one, other)]
            assert [float(each) for each in beside] == [measured.loc[(rule, "biotorch"), "speedup"]]

    def test_sweeps(self) -> None:
        measured = pd.read_csv(RESULTS / "bench/sweep.csv")
        shown = [
            numbers(" ".join(cells[1:3]).replace(",", ""))
            for cells in table_lines(page("docs/scaling.md"), 4)
        ]
        made: Iterable[tuple[int, float]] = zip(measured["cells"], measured["seconds"].round(1), strict=True)
        assert [line for line in shown if len(line) == 2] == [list(line) for line in made]
