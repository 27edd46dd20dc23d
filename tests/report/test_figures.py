"""The figure shows every curve, both gradients, the clean accuracy and chance, and is the same every time."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from sstune.report.figures import metric_against_eps
from sstune.report.measurements import frame
from sstune.report.styles import CHANCE, COLOURS


def campaign(make: Any, scales: tuple[str, ...] = ("unit",), **changes: Any) -> list[Any]:
    """bp with one seed, usf with two on each scale; fgsm and pgd; clean 90.0 % on the attacked samples."""
    rows = []
    bp = make.finetune("bp", **changes)
    parents = [
        bp,
        *[make.finetune("usf", seed, scale=scale, **changes) for scale in scales for seed in (0, 1)],
    ]
    for parent in parents:
        seed, usf = parent["config"]["seed"], parent["config"]["rule"]["name"] == "usf"
        rows += [parent, make.attack(parent, "fgsm", counts={"4/255": (400, 300), "2/255": (600, 500)})]
        rows += [make.attack(parent, "pgd", counts={"4/255": (500 + 20 * seed if usf else 0, 0)})]
    return rows


def near(points: list[tuple[float, float]]) -> Any:
    return [pytest.approx(point) for point in points]


def curves(axes: Any) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """(colour, line style) -> points."""
    return {
        (line.get_color(), line.get_linestyle()): list(zip(*line.get_data(), strict=True))
        for line in axes.get_lines()
    }


def test_curves_by_hand(make: Any, drawn: list[Figure], tmp_path: Path) -> None:
    assert metric_against_eps(frame(campaign(make)), tmp_path) == [
        tmp_path / "accuracy.png",
        tmp_path / "accuracy.svg",
    ]
    (figure,) = drawn
    fgsm, pgd = figure.axes
    assert (fgsm.get_title(), pgd.get_title()) == ("fgsm, scale unit", "pgd, scale unit")
    assert curves(fgsm)[COLOURS["usf"], "--"] == near([(0, 90), (2, 60), (4, 40)])
    assert curves(fgsm)[COLOURS["usf"], "-"] == near([(0, 90), (2, 50), (4, 30)])
    assert curves(pgd)[COLOURS["usf"], "--"] == near([(0, 90), (4, 51)])
    assert curves(pgd)[COLOURS["bp"], "-"] == near([(0, 90), (4, 0)])
    for axes in (fgsm, pgd):
        chance = [line for line in axes.get_lines() if line.get_color() == CHANCE["color"]]
        assert [set(line.get_ydata()) for line in chance] == [{10.0}]
    # a band for usf, which has two seeds, at both gradients, and none for bp: 51 +- 1.41 %
    band = pgd.collections[-1].get_paths()[0].vertices[:, 1]
    assert len(pgd.collections) == 2
    assert (band.min(), band.max()) == pytest.approx((51 - 2**0.5, 90))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["bp", "usf", "rule gradient", "exact gradient", "chance (10 %)"]
    assert fgsm.get_xlabel() == pgd.get_xlabel() == "eps · 255"
    assert fgsm.get_ylabel() == "accuracy (%)"
    assert [tick.get_text() for tick in fgsm.get_xticklabels()] == ["0", "2", "4"]


def test_a_row_for_each_scale_and_bp_in_every_row(make: Any, drawn: list[Figure], tmp_path: Path) -> None:
    metric_against_eps(frame(campaign(make, ("unit", "xavier"))), tmp_path)
    panels = drawn[0].axes
    assert [axes.get_title() for axes in panels] == [
        f"{attack}, scale {scale}" for scale in ("unit", "xavier") for attack in ("fgsm", "pgd")
    ]
    for axes in panels:
        assert {colour for colour, _ in curves(axes)} == {COLOURS["bp"], COLOURS["usf"], CHANCE["color"]}


def test_clean_accuracy_is_of_the_whole_test_set_where_nothing_else_is_known(
    make: Any, drawn: list[Figure], tmp_path: Path
) -> None:
    parent = make.finetune("bp", correct=8000)
    attack = make.attack(parent)
    attack["measurements"] = attack["measurements"][1:]
    metric_against_eps(frame([parent, attack]), tmp_path)
    assert curves(drawn[0].axes[0])[COLOURS["bp"], "-"][0] == (0, pytest.approx(80))


def test_variants_and_unknown_rules_and_gradients_get_looks_of_their_own(
    make: Any, drawn: list[Figure], tmp_path: Path
) -> None:
    rows = [make.attack(make.finetune("bp", epochs=epochs)) for epochs in (3, 9)]
    square = make.attack(make.finetune("dfa"), "square")
    square["measurements"] = [
        {**found, "gradient": None} for found in square["measurements"] if found["gradient"] != "rule"
    ]
    metric_against_eps(frame([*rows, square]), tmp_path)
    legend = drawn[0].legends[0]
    handles = dict(zip([text.get_text() for text in legend.get_texts()], legend.get_lines(), strict=True))
    assert list(handles)[:3] == ["bp (epochs=3)", "bp (epochs=9)", "dfa"]
    looks = [(line.get_color(), line.get_marker()) for line in legend.get_lines()[:3]]
    assert len(set(looks)) == 3
    assert looks[0][0] == looks[1][0] == "#000000" != looks[2][0]
    assert handles["square, no gradient"].get_linestyle() == "-."


def black_box(make: Any, parent: Any, name: str, counts: dict[str, int], **changes: Any) -> Any:
    """An attack without gradient: eps -> correct of 1,000."""
    row = make.attack(parent, name, counts={eps: (count, 0) for eps, count in counts.items()}, **changes)
    row["measurements"] = [
        entry | {"gradient": None} for entry in row["measurements"] if entry["gradient"] != "exact"
    ]
    return row


def test_a_black_box_is_drawn_beside_what_it_might_beat(
    make: Any, drawn: list[Figure], tmp_path: Path
) -> None:
    usf = make.finetune("usf")
    rows = [make.attack(usf, name) for name in ("fgsm", "pgd")]
    rows += [black_box(make, usf, "square", {"8/255": 300}), black_box(make, usf, "audit", {"8/255": 50})]
    metric_against_eps(frame(rows), tmp_path)
    panels = drawn[0].axes
    assert [axes.get_title().split(",")[0] for axes in panels] == ["fgsm", "pgd"]
    for axes in panels:
        ends = {line.get_linestyle(): line.get_ydata()[-1] for line in axes.get_lines()}
        assert ends["-."] == pytest.approx(30)
        lowest = [line.get_ydata()[-1] for line in axes.get_lines() if len(line.get_ydata()) == 2]
        assert min(lowest) == pytest.approx(5)
    labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert labels == [
        *("usf", "rule gradient", "exact gradient"),
        *("square, no gradient", "worst case of an audit", "chance (10 %)"),
    ]


def test_a_black_box_alone_has_its_own_panel(make: Any, drawn: list[Figure], tmp_path: Path) -> None:
    rows = [black_box(make, make.finetune("usf"), name, {"8/255": 300}) for name in ("square", "rays")]
    metric_against_eps(frame(rows), tmp_path)
    assert [axes.get_title() for axes in drawn[0].axes] == [
        "square, scale weight_rms",
        "rays, scale weight_rms",
    ]


def test_l2_has_panels_with_its_own_eps(make: Any, drawn: list[Figure], tmp_path: Path) -> None:
    usf = make.finetune("usf")
    rows = [make.attack(usf), make.attack(usf, counts={"0.5": (1, 1), "1.5": (0, 0)}, norm="L2")]
    rows.append(black_box(make, usf, "square", {"8/255": 300}))
    metric_against_eps(frame(rows), tmp_path)
    linf, l2 = drawn[0].axes
    assert (linf.get_xlabel(), l2.get_xlabel()) == ("eps · 255", "eps (L2)")
    assert l2.get_title().startswith("pgd L2")
    ticks = [[tick.get_text() for tick in axes.get_xticklabels()] for axes in (linf, l2)]
    assert ticks == [["0", "8"], ["0", "0.5", "1.5"]]
    assert [len(axes.get_lines()) for axes in (linf, l2)] == [4, 3]  # square is of Linf, chance of both


def test_of_several_surrogates_the_strongest_is_drawn(make: Any, drawn: list[Figure], tmp_path: Path) -> None:
    row = make.attack(make.finetune("usf"), "mifgsm", counts={"4/255": (500, 600), "8/255": (400, 300)})
    for entry in row["measurements"][1:]:
        entry |= {"source": f"net@{entry['gradient']}", "gradient": "surrogate"}
    metric_against_eps(frame([row]), tmp_path)
    (curve,) = [line for line in drawn[0].axes[0].get_lines() if len(line.get_ydata()) == 3]
    assert list(curve.get_ydata()) == pytest.approx([90, 50, 30])


def test_one_figure_for_each_dataset_and_backbone(make: Any, tmp_path: Path) -> None:
    rows = [
        *campaign(make, dataset__label="digits"),
        *campaign(make, dataset__label="my set/2"),
        make.finetune("bp", dataset__label="unattacked"),
    ]
    names = [path.name for path in metric_against_eps(frame(rows), tmp_path)]
    assert names == [
        "accuracy-digits-resnet20.png",
        "accuracy-digits-resnet20.svg",
        "accuracy-my_set_2-resnet20.png",
        "accuracy-my_set_2-resnet20.svg",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_without_attacks_there_is_nothing_to_draw(make: Any, tmp_path: Path) -> None:
    assert metric_against_eps(frame([make.finetune()]), tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_files_are_the_same_every_time(make: Any, tmp_path: Path) -> None:
    rows = campaign(make)
    contents = []
    for attempt in range(2):
        random.Random(attempt).shuffle(rows)
        (tmp_path / str(attempt)).mkdir()
        # a reader's own settings must not show either
        with matplotlib.rc_context({"lines.linewidth": 9, "svg.hashsalt": None, "axes.facecolor": "red"}):
            contents.append(
                [path.read_bytes() for path in metric_against_eps(frame(rows), tmp_path / str(attempt))]
            )
    assert contents[0] == contents[1]
    assert not re.search(rb"<dc:date>|\b20\d\d-\d\d-\d\d", contents[0][1])


def test_the_picture_can_be_looked_at(make: Any, tmp_path: Path) -> None:
    png, svg = metric_against_eps(frame(campaign(make)), tmp_path)
    with Image.open(png) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
        assert image.width > 800
        assert image.height > 300
    for rule in ("bp", "usf"):
        colour = [int(COLOURS[rule][place : place + 2], 16) for place in (1, 3, 5)]
        assert (pixels == colour).all(axis=1).sum() > 500, rule
    text = svg.read_text()
    for label in ("eps · 255", "accuracy (%)", "chance (10 %)", "resnet20, cifar10-jpeg"):
        assert f"<!-- {label} -->" in text
