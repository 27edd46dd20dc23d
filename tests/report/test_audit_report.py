"""An audit as text, as a table line and as a page: nothing is lost, nothing breaks out of its place."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from sstune.packing import pack
from sstune.report.audit import WORDS, audit_text
from sstune.report.audit_figures import AGAINST_EPS, attack_records, audit_figures
from sstune.report.audit_page import audit_page
from sstune.report.audit_table import audit_table
from sstune.report.measurements import frame
from sstune.report.pairs import gap_table
from sstune.report.tables import to_csv, to_text
from sstune.statistics import wilson

VOID = {"meta", "img", "br", "path", "use", "rect"}


def check(name: str, status: str, figure: float | None = 1.5, **changes: Any) -> dict[str, Any]:
    fields = {
        "title": f"what {name} asks",
        "unit": "points",
        "threshold": "<= 2",
        "n": 40,
        "text": f"says {name}",
    }
    return {"id": name, "status": status, "figure": figure, **fields, **changes}


def cell(
    attack: str, gradient: str | None, eps: str, kept: str, made_on: str = "", **more: Any
) -> dict[str, Any]:
    """``kept``: "x" for each sample that stayed right, of those that ``made_on`` has a "1" for (or all).

    In ``made_on``, of each sample: "1" if the attack was made on it, "0" if it only stands for it, else ".".
    """
    right = [character == "x" for character in kept]
    entry = {
        "split": "test",
        "attack": attack,
        "gradient": gradient,
        "eps": eps,
        "source": "",
        "seconds": 1.0,
    }
    entry |= {"n": len(right), "correct": sum(right), "outcomes": pack(right), "found": [], **more}
    if not made_on:
        return entry
    return entry | {
        "made_on": pack([character == "1" for character in made_on]),
        "among": pack([character != "." for character in made_on]),
    }


@pytest.fixture
def row(make: Any) -> Any:
    """usf, eight samples, the second and the last wrong without attack; a black box on six of them, by labels
    on three."""
    row = make.attack(make.finetune("usf"), "audit", counts={"1/255": (0, 0), "2/255": (0, 0)}, n=8, clean=6)
    row["config"]["audit"] = {"black_box_n": 6, "label_n": 3, "skip": []}
    make.remember(row, {"clean": "x.xxxxx."})
    steps = {"found": [[0, 1], [3, 1]]}
    row["measurements"] = [
        row["measurements"][0],
        cell("pgd", "rule", "1/255", "x.xxxx.."),
        cell("pgd", "rule", "2/255", "x.x.xx..", **steps),
        cell("pgd", "exact", "1/255", "x.x....."),
        cell("pgd", "exact", "2/255", "........"),
        cell("mifgsm", "surrogate", "2/255", "x.x.....", source="bp@1"),
        cell("audit", None, "1/255", "x.x....."),
        cell("audit", None, "2/255", "........"),
    ]
    row["audit"] = {
        "verdict": "MASKED",
        "because": ["D1", "D7"],
        "not_run": {"D8": "no other network"},
        "checks": [
            check("D0", "ok", None, unit="", threshold="0"),
            check("D1", "masked", 37.5),
            check("D7", "masked"),
            check("D8", "not run", None, n=None, text="no other network"),
            check("D15", "report", 0.25, unit="cosine"),
        ],
        "cells": [
            cell("pgd steps=40", "rule", "2/255", "x.x.x..."),
            cell("square", None, "2/255", "x.", "10100000", found=[[5, 1]]),
            cell("square", None, "2/255", "..", "00010010", found=[[9, 2]]),
            cell("rays", None, "2/255", "xx", "1..01..."),
        ],
    }
    for part in row["audit"]["cells"][1:3]:
        part["among"] = pack([character == "1" for character in "11110011"])
    row |= {"git": {"commit": "c" * 40, "dirty": True}, "versions": {"torch": "2.x"}}
    return row


class TestText:
    def test_by_hand(self, row: Any) -> None:
        assert (
            audit_text(row["audit"])
            == """\
id   check               figure  threshold   n  verdict
D0   what D0 asks                0          40  ok
D1   what D1 asks   37.5 points  <= 2       40  MASKED
D7   what D7 asks    1.5 points  <= 2       40  MASKED
D8   what D8 asks                <= 2           not run
D15  what D15 asks  0.25 cosine  <= 2       40  reported

D1: says D1
D7: says D7
D15: says D15
D8 did not run: no other network

MASKED (D1, D7): attacks through this network's own gradient overstate its robustness
"""
        )

    def test_colours_mark_what_is_amiss_and_change_nothing_else(self, row: Any) -> None:
        plain, coloured = audit_text(row["audit"]), audit_text(row["audit"], colour=True)
        assert re.sub(r"\033\[[\d;]*m", "", coloured) == plain
        marked = {line.split()[0][-2:] for line in coloured.split("\n") if line.startswith("\033")}
        assert marked == {"D1", "D7", "D8"}

    @settings(max_examples=50, deadline=None)
    @given(data=st.data(), width=st.integers(80, 110))
    def test_fits_and_says_everything(self, data: st.DataObject, width: int) -> None:
        words = st.lists(st.text("abcdefg", min_size=1, max_size=12), min_size=1, max_size=25).map(" ".join)
        checks = [
            check(
                f"D{number}",
                data.draw(st.sampled_from(sorted(WORDS))),
                data.draw(st.none() | st.floats(-100, 1e4)),
                title=data.draw(words),
                threshold=data.draw(words),
                text=data.draw(words),
                unit=data.draw(st.sampled_from(["points", "%", "cosine", ""])),
            )
            for number in range(3)
        ]
        verdict = data.draw(st.sampled_from(["MASKED", "NOT MASKED", "INCONCLUSIVE"]))
        text = audit_text({"verdict": verdict, "because": [], "not_run": {}, "checks": checks}, width)
        assert max(map(len, text.split("\n"))) <= width
        assert f"\n{verdict}: " in text
        said = sorted(text.split())
        for one in checks:
            for word in [*one["title"].split(), *one["threshold"].split(), one["id"]]:
                assert word in said


class TestTable:
    def test_by_hand(self, row: Any) -> None:
        assert to_csv(audit_table([row], frame([row]))) == (
            "backbone,dataset,rule,scale,variant,seed,n,clean,"
            "pgd 1/255 rule,pgd 1/255 exact,gap 1/255 points,worst case 1/255,"
            "pgd 2/255 rule,pgd 2/255 exact,gap 2/255 points,worst case 2/255,"
            "verdict,because,amiss,not run\n"
            "resnet20,cifar10-jpeg,usf,weight_rms,,0,8,0.750000,"
            "0.625000,0.250000,37.500000,0.250000,0.500000,0.000000,50.000000,0.000000,"
            "MASKED,D1 D7,D1 D7,D8\n"
        )

    def test_what_is_amiss(self, row: Any) -> None:
        """Whether or not the verdict rests on it."""
        row["audit"]["checks"] += [check("D10", "warn"), check("D11", "error"), check("D12", "ok")]
        assert audit_table([row], frame([row]))["amiss"].tolist() == ["D1 D7 D10 D11"]

    def test_nothing_without_audits(self, make: Any) -> None:
        assert len(audit_table([make.attack(make.finetune())], frame([make.attack(make.finetune())]))) == 0

    def test_what_was_measured_is_in_the_tables_of_accuracy(self, row: Any) -> None:
        text = to_text(frame([row]))
        assert re.search(r"^usf( +[\d.]+)+ +25\.0 +0\.0$", text, re.MULTILINE)
        assert "audit: the worst case over all that an audit tried" in " ".join(text.split())
        gaps = gap_table(frame([row]))
        assert list(zip(gaps["attack"], gaps["eps"], gaps["gap_points"], strict=True)) == [
            ("pgd", "1/255", pytest.approx(37.5)),
            ("pgd", "2/255", pytest.approx(50)),
        ]

    def test_audits_in_two_ways_are_told_apart(self, row: Any, make: Any) -> None:
        other = {**row, "identity": "f" * 64, "config": {**row["config"], "audit": {"black_box_n": 9}}}
        assert list(audit_table([row, other], frame([row, other]))["variant"]) == [
            "audit.black_box_n=6 audit.label_n=3 audit.skip=[]",
            "audit.black_box_n=9",
        ]


class TestTried:
    def test_the_parts_of_a_black_box_are_put_together(self, row: Any) -> None:
        """Square was made on two samples that PGD had left, and on the two others that were right."""
        found = {(one.label, one.eps): one for one in attack_records(row)}
        square = found["square", "2/255"]
        assert (square.n, square.n_clean, square.entered, square.correct) == (6, 4, 4, 1)
        assert square.by_pgd == 2
        assert square.found == [[5, 1], [9, 2]]

    def test_what_pgd_has_broken_stays_broken(self, row: Any) -> None:
        """RayS was made on two of the three samples that labels are asked of."""
        (rays,) = [one for one in attack_records(row) if one.attack == "rays"]
        assert rays.label == "rays after PGD"
        assert (rays.n, rays.n_clean, rays.entered, rays.correct, rays.by_pgd) == (3, 3, 2, 2, 2)

    def test_an_attack_on_all_samples_stands_beside_no_other(self, row: Any) -> None:
        for one in attack_records(row):
            if one.attack in ("pgd", "mifgsm", "audit"):
                assert (one.n, one.n_clean, one.entered, one.by_pgd) == (8, 6, 6, None)

    def test_labels_and_order(self, row: Any) -> None:
        labels = list(dict.fromkeys(one.label for one in attack_records(row)))
        assert labels == [
            *("mifgsm, from bp@1", "pgd, rule", "pgd, exact", "pgd steps=40, rule"),
            *("square", "rays after PGD", "worst case"),
        ]


class TestFigures:
    @pytest.fixture
    def figures(self, row: Any) -> dict[str, Figure]:
        """PGD and RayS were also tried at an eps between two that were asked for."""
        steps = {"found": [[0, 1], [1, 1], [3, 2]]}
        row["audit"]["cells"] += [
            cell("pgd", "rule", "1.5/255", "x.x.....", **steps | {"found": [[0, 1], [3, 3]]}),
            cell("pgd", "rule", "64/255", "........", found=[[0, 6]]),
            cell("rays", None, "1.5/255", "..", "1.1.....", found=[[7, 2]]),
        ]
        return dict(audit_figures(row))

    def test_lines_break_off_where_an_attack_was_not_made(self, figures: dict[str, Figure]) -> None:
        (axes,) = figures[AGAINST_EPS].axes
        ticks = [label.get_text() for label in axes.get_xticklabels()]
        assert ticks == ["0", "1/255", "1.5/255", "2/255", "64/255"]
        drawn = {
            bars.get_label(): np.asarray(bars.lines[0].get_ydata(), float)
            for bars in axes.containers
            if isinstance(bars, ErrorbarContainer)
        }
        nan = float("nan")
        assert drawn["pgd, rule"] == pytest.approx([75, 62.5, 25, 50, 0], nan_ok=True)
        assert drawn["pgd, exact"] == pytest.approx([75, 25, nan, 0, nan], nan_ok=True)
        assert drawn["worst case"] == pytest.approx([75, 25, nan, 0, nan], nan_ok=True)

    def test_effort_is_shown_where_a_black_box_was_tried(self, figures: dict[str, Figure]) -> None:
        titles = [
            axes.get_title()
            for caption, figure in figures.items()
            if caption != AGAINST_EPS
            for axes in figure.axes
        ]
        assert [title for title in titles if "1.5/255" in title] == ["eps 1.5/255"] * 2  # steps and queries
        assert not [title for title in titles if "64/255" in title]


class Page(HTMLParser):
    """What a browser would read: open tags, ids, and what is referred to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("src", "href", "xlink:href"):
                self.references.append(str(value))
            self.references += re.findall(r"url\(([^)]*)\)", str(value))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


class TestPage:
    def test_stands_by_itself(self, row: Any) -> None:
        text = audit_page(row, b"\x89PNG...")
        page = Page(text)
        assert page.open == []
        assert len(page.ids) == len(set(page.ids))
        assert {"svg", "table", "img"} <= page.tags
        assert not page.tags & {"script", "link", "iframe"}
        inside = {f"#{name}" for name in page.ids}
        for reference in page.references:
            assert reference in inside or reference.startswith("data:image/png;base64,"), reference
        assert base64.b64encode(b"\x89PNG...").decode() in text
        assert "@import" not in text

    def test_says_what_was_found(self, row: Any) -> None:
        text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", audit_page(row)))
        for said in (
            "MASKED",
            "resnet20 usf weight_rms, cifar10-jpeg",
            "(D1, D7)",
            "says D1",
            "no other network",
        ):
            assert said in text
        low, high = wilson(1, 6)
        assert f"square 6 16.7 ({100 * low:.1f} to {100 * high:.1f})" in text.replace(
            "\N{NO-BREAK SPACE}", " "
        )
        for origin in (row["identity"], "c" * 40, "(with changes)", "d" * 64, "a" * 64, "torch 2.x"):
            assert origin in text

    def test_without_images_there_is_none(self, row: Any) -> None:
        assert "<img" not in audit_page(row)

    def test_escapes_every_text(self, row: Any) -> None:
        evil = "<script>alert('1')</script>&\"x"
        row["config"]["backbone"]["name"] = evil
        row["config"]["dataset"]["label"] = evil
        row["lineage"].append({"file": evil, "sha256": "0" * 64})
        row["audit"]["not_run"]["D8"] = evil
        for key in ("title", "text", "threshold"):
            row["audit"]["checks"][1][key] = evil
        row["audit"]["cells"][-1]["source"] = evil
        text = audit_page(row)
        assert "<script" not in text
        assert text.count("&lt;script&gt;") >= 7
        assert Page(text).open == []

    def test_is_the_same_every_time(self, row: Any) -> None:
        assert audit_page(row) == audit_page(row)
