"""Pairs are counted by hand here; what was not measured on the same samples is never paired."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from sstune.report.measurements import frame
from sstune.report.pairs import gap_table, paired_table
from sstune.report.tables import to_csv
from sstune.statistics import difference_interval


@pytest.fixture
def rows(make: Any) -> list[Any]:
    """bp and usf under PGD at 8/255, eight samples."""
    bp, usf = (make.attack(make.finetune(rule), n=8) for rule in ("bp", "usf"))
    return [
        make.remember(bp, {"clean": "xxxxxxx.", "rule 8/255": "xx......", "exact 8/255": "xx......"}),
        make.remember(usf, {"clean": "xxxxxx..", "rule 8/255": "x.xxxx..", "exact 8/255": "x......."}),
    ]


def lines(table: pd.DataFrame, *columns: str) -> list[tuple[Any, ...]]:
    return list(table[list(columns)].itertuples(index=False, name=None))


def test_pairs_by_hand(rows: list[Any]) -> None:
    found = paired_table(frame(rows))
    ways = lines(found, "attack", "eps", "a", "gradient_a", "b", "gradient_b")
    usf = "usf weight_rms"
    assert ways == [
        ("clean", "", "bp", "", usf, ""),
        ("pgd", "8/255", "bp", "rule", "bp", "exact"),
        ("pgd", "8/255", "bp", "rule", usf, "rule"),
        ("pgd", "8/255", "bp", "exact", usf, "exact"),
        ("pgd", "8/255", usf, "rule", usf, "exact"),
    ]
    assert lines(found, "n", "both", "only_a", "only_b", "neither", "difference_points") == [
        (8, 6, 1, 0, 1, 12.5),
        (8, 2, 0, 0, 6, 0),
        (8, 1, 1, 4, 2, -37.5),
        (8, 1, 1, 0, 6, 12.5),
        (8, 1, 4, 0, 3, 50),
    ]
    expected = [1, 1, binomtest(1, 5).pvalue, 1, binomtest(4, 4).pvalue]
    assert list(found["p"]) == pytest.approx(expected)
    low, high = difference_interval(1, 4, 8)
    assert lines(found, "low_points", "high_points")[2] == pytest.approx((100 * low, 100 * high))


def test_gap_by_hand(rows: list[Any]) -> None:
    found = gap_table(frame(rows))
    columns = ("rule", "attack", "eps", "seeds", "n", "rule_gradient", "exact_gradient", "gap_points")
    assert lines(found, *columns) == [
        ("bp", "pgd", "8/255", 1, 8, 0.25, 0.25, 0),
        ("usf", "pgd", "8/255", 1, 8, 0.625, 0.125, 50),
    ]
    low, high = difference_interval(4, 0, 8)
    assert lines(found, "low_points", "high_points")[1] == pytest.approx((100 * low, 100 * high))


def test_rows_without_outcomes_have_a_gap_and_no_pairs(make: Any) -> None:
    old = [make.attack(make.finetune("usf"), counts={"8/255": (500, 100), "0.5": (10, 2)})]
    assert len(paired_table(frame(old))) == 0
    found = gap_table(frame(old))
    assert list(found["gap_points"]) == pytest.approx([40, 0.8])
    assert found[["low_points", "high_points"]].isna().all(axis=None)
    assert to_csv(found).split("\n")[1].endswith(",8/255,1,1000,0.500000,0.100000,40.000000,,")


def test_without_two_gradients_there_is_no_gap(make: Any) -> None:
    attack = make.attack(make.finetune("usf"))
    attack["measurements"] = [entry for entry in attack["measurements"] if entry["gradient"] != "exact"]
    assert len(gap_table(frame([attack, make.finetune("bp")]))) == 0


@pytest.mark.parametrize("other", ["samples", "seed", "steps", "dataset"])
def test_what_was_measured_otherwise_is_not_paired(make: Any, other: str) -> None:
    kept = {"clean": "xxxx", "rule 8/255": "xx..", "exact 8/255": "x..."}
    bp = make.remember(make.attack(make.finetune("bp"), n=4), kept)
    parent = {"seed": {"seed": 1}, "dataset": {"dataset__label": "digits"}}.get(other, {})
    attack = make.attack(make.finetune("usf", **parent), n=4, **({"steps": 20} if other == "steps" else {}))
    usf = make.remember(attack, kept, samples="b" * 64 if other == "samples" else "a" * 64)
    pairs = paired_table(frame([bp, usf]))
    across = pairs[(pairs["a"] != pairs["b"])]
    assert set(across["attack"]) == ({"clean"} if other == "steps" else set())


def test_a_surrogates_attack_is_paired_with_the_same_surrogates(make: Any) -> None:
    found = []
    for rule in ("bp", "usf"):
        for source in ("one@1", "other@2"):
            row = make.attack(make.finetune(rule), "mifgsm", n=4, note=source)
            row["measurements"] = [
                entry | {"gradient": "surrogate", "source": source}
                for entry in row["measurements"]
                if entry["gradient"] == "rule"
            ]
            found.append(make.remember(row, {"surrogate 8/255": "xx.." if source == "one@1" else "x..."}))
            del row["config"]["attack"]["note"]  # made the identities differ
    table = paired_table(frame(found))
    assert lines(table, "source", "a", "b", "both") == [
        ("one@1", "bp", "usf weight_rms", 2),
        ("other@2", "bp", "usf weight_rms", 1),
    ]


def test_seeds_are_averaged_in_the_gap_and_paired_each_for_itself(make: Any) -> None:
    rows = []
    for seed, rule in ((0, "xxxx...."), (1, "xx......")):
        attack = make.attack(make.finetune("usf", seed), n=8)
        rows.append(make.remember(attack, {"rule 8/255": rule, "exact 8/255": "x......."}))
    found = gap_table(frame(rows))
    assert lines(found, "seeds", "n", "rule_gradient", "exact_gradient", "gap_points") == [
        (2, 8, 0.375, 0.125, 25)
    ]
    low, high = difference_interval(2, 0, 8)
    assert lines(found, "low_points", "high_points")[0] == pytest.approx((100 * low, 100 * high))
    assert lines(paired_table(frame(rows)), "seed", "only_a") == [(0, 3), (1, 1)]


def test_nets_of_two_ancestors_are_not_mixed(make: Any) -> None:
    """The rule's gradient of one and the exact one of the other would make a gap of neither."""
    rows = []
    for seed in (0, 1):
        trained = make.finetune("bp", seed, command="train", lineage=[])
        lineage = [{key: trained[key] for key in ("command", "identity", "config")}]
        attack = make.attack(make.finetune("usf", 0, lineage=lineage), n=4)
        kept = (
            {"rule 8/255": "xxxx", "exact 8/255": "xxxx"}
            if seed
            else {"rule 8/255": "....", "exact 8/255": "...."}
        )
        rows.append(make.remember(attack, kept))
    (line,) = gap_table(frame(rows)).to_dict("records")
    assert (line["seeds"], line["gap_points"]) == (2, 0)
    assert list(paired_table(frame(rows))["difference_points"]) == [0, 0]


def test_the_order_of_rows_does_not_show(make: Any) -> None:
    generator = np.random.default_rng(0)
    rows = []
    for rule in ("bp", "usf", "frsf"):
        for seed in (0, 1):
            keys = ["clean", "rule 8/255", "exact 8/255"]
            kept = {key: "".join(generator.choice(["x", "."], 20)) for key in keys}
            rows.append(make.remember(make.attack(make.finetune(rule, seed), n=20), kept))
    expected = [to_csv(make_table(frame(rows))) for make_table in (gap_table, paired_table)]
    for _ in range(3):
        random.Random(_).shuffle(rows)
        assert [to_csv(make_table(frame(rows))) for make_table in (gap_table, paired_table)] == expected
