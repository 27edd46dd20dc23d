"""Curves against steps and queries end where the table says, and are counted by hand on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from sstune.report.effort import accuracy_after, complete, metric_against_effort
from sstune.report.measurements import frame
from sstune.report.styles import COLOURS


def points(axes: Any) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """(colour, line style) -> where a curve steps."""
    return {
        (line.get_color(), line.get_linestyle()): list(zip(*line.get_data(), strict=True))
        for line in axes.get_lines()
    }


@given(st.lists(st.integers(0, 30), max_size=50), st.integers(0, 5), st.integers(0, 40))
def test_accuracy_after_counts_who_is_left(broke_after: list[int], never: int, effort: int) -> None:
    found = [[when, broke_after.count(when)] for when in sorted(set(broke_after), reverse=True)]
    n_clean = len(broke_after) + never
    n = n_clean + 3
    left = never + sum(when > effort for when in broke_after)
    assert accuracy_after(found, n_clean, n, [effort])[0] == pytest.approx(left / n)


def test_complete_only_if_nobody_is_missing() -> None:
    assert complete([[0, 2], [7, 1]], 10, 7)
    assert not complete([[0, 2], [7, 1]], 10, 6)  # one broke at an unknown step
    assert complete([], 10, 10)
    assert not complete([], 10, 3)


def pgd(make: Any, rule: str, seed: int = 0, rule_found: Any = ((0, 1), (3, 2))) -> Any:
    """10 samples, 9 right before; after 10 steps 6 and 2 of them."""
    attack = make.attack(make.finetune(rule, seed), n=10, clean=9)
    kept = {"clean": "xxxxxxxxx.", "rule 8/255": "xxxxxx....", "exact 8/255": "xx........"}
    found = {"rule 8/255": [list(pair) for pair in rule_found], "exact 8/255": [[1, 3], [2, 4]]}
    return make.remember(attack, kept, found)


def test_steps_by_hand(make: Any, drawn: list[Figure], tmp_path: Path) -> None:
    written = metric_against_effort(frame([pgd(make, "usf")]), tmp_path)
    assert written == [tmp_path / "steps.png", tmp_path / "steps.svg"]
    ((axes,),) = [figure.axes for figure in drawn]
    assert points(axes) == {
        (COLOURS["usf"], "--"): [(0, pytest.approx(80)), (3, pytest.approx(60)), (10, pytest.approx(60))],
        (COLOURS["usf"], "-"): [
            (0, 90),
            (1, pytest.approx(60)),
            (2, pytest.approx(20)),
            (10, pytest.approx(20)),
        ],
    }
    assert (axes.get_title(), axes.get_xlabel(), axes.get_xscale()) == (
        "eps 8/255",
        "gradient steps",
        "linear",
    )
    labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert labels == ["usf", "rule gradient", "exact gradient"]


def test_seeds_are_averaged_where_either_steps(make: Any, drawn: list[Figure], tmp_path: Path) -> None:
    rows = [pgd(make, "usf", 0), pgd(make, "usf", 1, rule_found=((5, 3),))]
    metric_against_effort(frame(rows), tmp_path)
    curve = points(drawn[0].axes[0])[COLOURS["usf"], "--"]
    assert curve == [(x, pytest.approx(y)) for x, y in [(0, 85), (3, 75), (5, 60), (10, 60)]]


def test_queries_have_a_figure_of_their_own_on_a_logarithmic_axis(
    make: Any, drawn: list[Figure], tmp_path: Path
) -> None:
    rows = [pgd(make, "usf")]
    for eps, kept in (("4/255", "xxx......."), ("8/255", "..........")):
        row = make.attack(make.finetune("usf"), "square", n=10, clean=9, counts={eps: (9, 9)}, queries=5000)
        row["measurements"] = [
            entry | {"gradient": None} for entry in row["measurements"] if entry["gradient"] != "exact"
        ]
        found = {f" {eps}": [[1, 4], [800, 9 - kept.count("x") - 4]]}
        rows.append(make.remember(row, {"clean": "xxxxxxxxx.", f" {eps}": kept}, found))
    written = [path.name for path in metric_against_effort(frame(rows), tmp_path)]
    assert written == ["steps.png", "steps.svg", "queries.png", "queries.svg"]
    queries = drawn[1].axes
    assert [axes.get_title() for axes in queries] == ["eps 4/255", "eps 8/255"]
    assert all(axes.get_xscale() == "log" for axes in queries)
    ((curve,),) = [points(axes).values() for axes in queries[1:]]
    # nothing is drawn at 0, which a logarithmic axis does not have
    assert [x for x, _ in curve] == [1, 1, 800, 5000]
    assert [y for _, y in curve] == pytest.approx([90, 50, 0, 0])


def test_what_does_not_tell_its_steps_is_left_out(make: Any, tmp_path: Path) -> None:
    kept = {"clean": "xxxxxxxxx.", "rule 8/255": "xxxxxx....", "exact 8/255": "xx........"}
    parent = make.finetune("usf")
    some = {"rule 8/255": [[3, 2]], "exact 8/255": [[1, 6]]}  # one of each is missing
    surrogate = pgd(make, "bp")
    for entry in surrogate["measurements"][1:]:
        entry |= {"gradient": "surrogate", "source": f"net@{entry['gradient']}"}
    rows = [
        make.attack(parent),  # a row from before there was anything to tell
        make.remember(make.attack(parent, "apgd", n=10, clean=9), kept),
        make.remember(make.attack(parent, "mifgsm", n=10, clean=9), kept, some),
        make.remember(
            make.attack(parent, "fgsm", n=10, clean=9),
            kept,
            {"rule 8/255": [[1, 3]], "exact 8/255": [[1, 7]]},
        ),
        surrogate,
    ]
    assert metric_against_effort(frame(rows), tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_an_attack_that_breaks_nothing_is_drawn_beside_one_that_does(
    make: Any, drawn: list[Figure], tmp_path: Path
) -> None:
    attack = make.attack(make.finetune("fa"), n=10, clean=9)
    kept = {"clean": "xxxxxxxxx.", "rule 8/255": "xxxxxxxxx.", "exact 8/255": "xx........"}
    metric_against_effort(frame([make.remember(attack, kept, {"exact 8/255": [[1, 7]]})]), tmp_path)
    assert points(drawn[0].axes[0])[COLOURS["fa"], "--"] == [(0, 90), (10, 90)]


def test_files_are_the_same_every_time(make: Any, tmp_path: Path) -> None:
    rows = [pgd(make, rule) for rule in ("bp", "usf", "frsf")]
    contents = []
    for name, order in (("one", rows), ("two", rows[::-1])):
        (tmp_path / name).mkdir()
        contents.append([path.read_bytes() for path in metric_against_effort(frame(order), tmp_path / name)])
    assert contents[0] == contents[1]
    assert np.frombuffer(contents[0][0][:4], np.uint8).tolist() == [0x89, 0x50, 0x4E, 0x47]
