"""Tables hold the figures one computes by hand, average only what may be averaged, and hide nothing."""

from __future__ import annotations

import math
import random
import re
import statistics
from collections import defaultdict
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sstune.report.measurements import frame
from sstune.report.rows import write_rows
from sstune.report.tables import lines, table, to_csv, to_latex, to_text, wide
from sstune.schema import RequestError


def cell(found: pd.DataFrame, **keys: Any) -> Any:
    for key, value in keys.items():
        found = found[found[key] == value]
    assert len(found) == 1, found
    return found.iloc[0]


def test_long_table_by_hand(make: Any) -> None:
    rows = []
    for seed, (clean, rule, exact) in enumerate([(900, 700, 20), (910, 730, 10), (880, 760, 0)]):
        parent = make.finetune("usf", seed, correct=9000 + 100 * seed)
        rows += [parent, make.attack(parent, clean=clean, counts={"8/255": (rule, exact)})]
    assert to_csv(table(frame(rows))) == (
        "backbone,dataset,rule,scale,variant,attack,gradient,source,eps,seeds,n,mean,std,low,high\n"
        "resnet20,cifar10-jpeg,usf,weight_rms,,clean,,,,3,1000,0.896667,0.015275,0.876258,0.914040\n"
        "resnet20,cifar10-jpeg,usf,weight_rms,,clean,,,,3,10000,0.910000,0.010000,0.904232,0.915453\n"
        "resnet20,cifar10-jpeg,usf,weight_rms,,pgd,rule,,8/255,3,1000,0.730000,0.030000,0.701642,0.756598\n"
        "resnet20,cifar10-jpeg,usf,weight_rms,,pgd,exact,,8/255,3,1000,0.010000,0.010000,0.005441,0.018309\n"
    )


def test_one_seed_has_no_std(make: Any) -> None:
    found = table(frame([make.finetune()]))
    assert found["std"].isna().all()
    assert list(found["seeds"]) == [1]
    assert to_csv(found).split("\n")[1].endswith(",1,10000,0.900000,,0.893966,0.905727")


def test_measurements_are_tidy_and_of_the_test_split(make: Any) -> None:
    parent = make.finetune("usf", 3, correct=8740)
    found = frame([parent, make.attack(parent, "fgsm", counts={"2/255": (3, 1)}, n=8, clean=7)])
    assert list(found["n"]) == [8, 10000, 8, 8]
    assert list(found["correct"]) == [7, 8740, 3, 1]
    assert list(found["value"]) == [0.875, 0.874, 0.375, 0.125]
    assert list(found["seed"]) == [3] * 4
    attacked = cell(found, attack="fgsm", gradient="exact")
    assert (attacked["eps"], attacked["eps_value"], attacked["seconds"]) == ("2/255", 2 / 255, 1.5)
    clean = cell(found, attack="clean", n=10000)
    assert math.isnan(clean["eps_value"])
    assert clean["identity"] == parent["identity"]


def test_clean_of_several_attacks_on_one_net_counts_once(make: Any) -> None:
    rows = []
    for seed in (0, 1):
        parent = make.finetune("usf", seed)
        rows += [make.attack(parent, name, clean=900 + seed) for name in ("fgsm", "pgd")]
    found = cell(table(frame(rows)), attack="clean")
    assert (found["seeds"], found["mean"]) == (2, pytest.approx(0.9005))


def test_rows_that_disagree_about_one_measurement_are_refused(make: Any) -> None:
    parent = make.finetune()
    rows = [make.attack(parent, "fgsm", clean=900), make.attack(parent, "pgd", clean=901)]
    with pytest.raises(RequestError, match=r"disagree: clean .*90[01] and 90[01] correct of 1000"):
        table(frame(rows))


def test_an_attack_continued_at_further_eps_is_the_same_attack(make: Any) -> None:
    parent = make.finetune()
    first = make.attack(parent, counts={"1/255": (5, 4), "2/255": (3, 2)})
    second = make.attack(parent, counts={"2/255": (3, 2), "4/255": (1, 0)})
    grid = wide(frame([first, second]))
    assert len(grid) == 1
    assert list(grid["pgd"].columns.get_level_values("eps").unique()) == [
        "1/255",
        "2/255",
        "4/255",
    ]
    assert cell(table(frame([first, second])), eps="2/255", gradient="rule")["seeds"] == 1


def test_differing_settings_are_lines_told_apart_by_what_differs(make: Any) -> None:
    rows = [
        *[make.finetune("usf", seed) for seed in (0, 1)],
        make.finetune("usf", 0, epochs=9, optimizer__lr=0.1),
        make.finetune("frsf", 0, epochs=9),
    ]
    found = table(frame(rows))
    assert list(zip(found["rule"], found["variant"], found["seeds"], strict=True)) == [
        ("usf", "epochs=3 optimizer.lr=0.01", 2),
        ("usf", "epochs=9 optimizer.lr=0.1", 1),
        ("frsf", "", 1),
    ]


def test_a_seed_in_the_lineage_is_a_seed_and_anything_else_there_is_not(make: Any) -> None:
    def descendant(seed: int, epochs: int) -> Any:
        ancestor = make.finetune("bp", seed, command="train", lineage=[], epochs=epochs)
        lineage = [{key: ancestor[key] for key in ("command", "identity", "config")}]
        return make.finetune("usf", 0, lineage=lineage)

    assert list(table(frame([descendant(0, 5), descendant(1, 5)]))["seeds"]) == [2]
    assert list(table(frame([descendant(0, 5), descendant(1, 6)]))["variant"]) == [
        "init_from.epochs=5",
        "init_from.epochs=6",
    ]


def test_an_attack_repeated_with_other_seeds_leaves_one_clean_accuracy(make: Any) -> None:
    parent = make.finetune("usf", 5)
    rows = [make.attack(parent, seed=seed, counts={"8/255": (seed, seed)}) for seed in (5, 6, 7)]
    found = table(frame(rows))
    assert cell(found, attack="clean")["seeds"] == 1
    assert cell(found, attack="pgd", gradient="exact")["seeds"] == 3
    assert list(frame(rows)["seed"]) == [5, 5, 6, 7, 5, 6, 7]


def test_other_data_under_the_same_label_is_not_averaged(make: Any) -> None:
    rows = [make.finetune(seed=seed) for seed in (0, 1, 2)]
    for row, digit in zip(rows, "aab", strict=True):
        row["datasets"] = {"test": {"n": 10000, "digest": digit * 64}}
    found = table(frame(rows))
    assert list(found["variant"]) == ["datasets.test=aaaaaaaa", "datasets.test=bbbbbbbb"]
    assert list(found["seeds"]) == [2, 1]


def test_checkpoints_compare_by_content(make: Any) -> None:
    def descendant(seed: int, digit: str) -> Any:
        return make.finetune("usf", seed, lineage=[{"file": "net.pt", "sha256": digit * 64}])

    assert list(table(frame([descendant(0, "a"), descendant(1, "a")]))["seeds"]) == [2]
    assert list(table(frame([descendant(0, "a"), descendant(1, "b")]))["variant"]) == [
        "init_from.file=net.pt@aaaaaaaa",
        "init_from.file=net.pt@bbbbbbbb",
    ]


def test_nets_of_another_command_are_told_apart_by_that_alone(make: Any) -> None:
    trained = make.finetune("bp", command="train", lineage=[], epochs=100, optimizer__lr=0.1)
    rows = [trained, make.attack(trained), make.finetune("bp"), make.attack(make.finetune("bp"))]
    assert list(wide(frame(rows)).index.get_level_values("variant")) == ["command=finetune", "command=train"]


def test_an_attack_in_two_ways_makes_two_lines_that_share_the_rest(make: Any) -> None:
    parent = make.finetune()
    rows = [
        parent,
        make.attack(parent, "fgsm", counts={"8/255": (300, 300)}),
        make.attack(parent, "pgd", counts={"8/255": (200, 200)}),
        make.attack(parent, "pgd", counts={"8/255": (100, 100)}, steps=20),
    ]
    grid = wide(frame(rows))
    assert list(grid.index.get_level_values("variant")) == ["attack.steps=10", "attack.steps=20"]
    assert grid[("clean", "", "")].tolist() == [0.9, 0.9]
    assert grid[("fgsm", "8/255", "exact")].tolist() == [0.3, 0.3]
    assert grid[("pgd", "8/255", "exact")].tolist() == [0.2, 0.1]
    assert (
        list(table(frame(rows))["variant"])
        == ["", "", "", ""] + ["attack.steps=10"] * 2 + ["attack.steps=20"] * 2
    )


def test_rules_attacked_in_different_ways_say_so(make: Any) -> None:
    rows = [make.attack(make.finetune("usf")), make.attack(make.finetune("frsf"), steps=50)]
    assert list(wide(frame(rows)).index.get_level_values("variant")) == ["attack.steps=10", "attack.steps=50"]


def test_an_attack_on_a_checkpoint_file_needs_no_run(make: Any) -> None:
    rows = [make.attack(None, seed=seed, counts={"8/255": (seed, seed)}) for seed in (0, 2)]
    found = cell(table(frame(rows)), attack="pgd", gradient="rule")
    assert (found["rule"], found["seeds"], found["mean"]) == ("bp", 2, 0.001)


def test_attacking_through_another_rule_than_trained_with_keeps_both_in_view(make: Any) -> None:
    rows = [make.attack(make.finetune(rule), rule="brsf") for rule in ("usf", "frsf")]
    assert list(wide(frame(rows)).index.get_level_values("variant")) == [
        "as_trained.rule.name=frsf",
        "as_trained.rule.name=usf",
    ]


def views(
    make: Any, parent: Any, entries: list[tuple[str, str, str, int]], name: str = "mifgsm", **changes: Any
) -> Any:
    """An attack with (gradient, source, eps, correct of 1,000) each."""
    row = make.attack(parent, name, counts={}, **changes)
    for gradient, source, eps, correct in entries:
        entry = {"split": "test", "attack": name, "gradient": gradient or None, "eps": eps, "source": source}
        row["measurements"].append(entry | {"n": 1000, "correct": correct})
    return row


def test_surrogates_are_kept_apart(make: Any) -> None:
    parent = make.finetune("usf")
    transfer = [("surrogate", "net@1", "8/255", 400), ("surrogate", "other@2", "8/255", 300)]
    rows = [parent, views(make, parent, transfer)]
    long = table(frame(rows))
    attacked = long[long["attack"] == "mifgsm"]
    assert list(attacked["source"]) == ["net@1", "other@2"]
    assert list(attacked["mean"]) == [0.4, 0.3]
    assert set(long.loc[long["attack"] == "clean", "source"]) == {""}
    columns = [" ".join(column) for column in wide(frame(rows)).columns]
    assert columns == ["clean  ", "mifgsm 8/255 surrogate net@1", "mifgsm 8/255 surrogate other@2"]
    text = to_text(frame(rows))
    assert re.search(r"^rule +clean +net@1 +other@2$", text, re.MULTILINE)
    assert "NAME@DIGEST: through the true gradient of that other network" in text


def test_a_black_box_has_no_gradient(make: Any) -> None:
    rows = [views(make, make.finetune("usf"), [("", "", "8/255", 250)], "square")]
    assert [" ".join(column) for column in wide(frame(rows)).columns] == ["clean  ", "square 8/255 "]
    assert cell(table(frame(rows)), attack="square")["gradient"] == ""
    assert "rule:" not in to_text(frame(rows))


def test_attacks_stand_in_the_order_people_expect(make: Any) -> None:
    names = [
        "audit",
        "rays",
        "square",
        "autoattack",
        "fab_t",
        "apgd_t",
        "apgd",
        "pgd",
        "mifgsm",
        "fgsm",
        "noise",
    ]
    parent = make.finetune("usf")
    rows = [views(make, parent, [("", "", "8/255", 1)], name) for name in names]
    assert list(dict.fromkeys(table(frame(rows))["attack"])) == ["clean", *names[::-1]]


def test_l2_is_another_attack_with_eps_of_its_own(make: Any) -> None:
    parent = make.finetune("usf")
    rows = [
        make.attack(parent, counts={"8/255": (1, 1)}),
        make.attack(parent, counts={"1.5": (3, 2), "0.25": (9, 8)}, norm="L2"),
    ]
    found = frame(rows)
    assert list(dict.fromkeys(found["attack"])) == ["clean", "pgd", "pgd L2"]
    assert list(found.loc[found["attack"] == "pgd L2", "eps_value"]) == [0.25, 0.25, 1.5, 1.5]
    assert set(found["variant"]) == {""}  # the norm has been named


def test_with_a_cascade_the_eps_that_went_before_are_a_setting(make: Any) -> None:
    parent = make.finetune("usf")
    counts = [{"4/255": (9, 9), "8/255": (5, 5)}, {"8/255": (6, 6)}]
    apart = table(frame([make.attack(parent, counts=each, cascade=True) for each in counts]))
    assert list(apart.loc[apart["attack"] == "pgd", "variant"].unique()) == [
        "attack.eps=4/255 8/255",
        "attack.eps=8/255",
    ]
    with pytest.raises(RequestError, match="disagree"):
        table(frame([make.attack(parent, counts=each) for each in counts]))


def test_pictures_kept_make_no_other_attack(make: Any) -> None:
    parent = make.finetune("usf")
    rows = [make.attack(parent), make.attack(parent, save_images=8)]
    assert set(table(frame(rows))["variant"]) == {""}
    assert set(table(frame(rows))["seeds"]) == {1}


def test_how_an_attack_would_have_trained_is_no_matter(make: Any) -> None:
    """It attacks the parent's network, which its own configuration of training images does not change."""
    parent = make.finetune("usf", dataset__crop_padding=4)
    other = make.attack(parent, "fgsm")
    other["config"]["dataset"]["crop_padding"] = 0
    other["config"]["task"]["label_smoothing"] = 0.1
    found = table(frame([parent, make.attack(parent), other]))
    assert set(found["variant"]) == {""}
    assert set(found["attack"]) == {"clean", "pgd", "fgsm"}


def test_an_attack_as_usual_and_otherwise_are_two_lines(make: Any) -> None:
    """A setting that a row leaves out, as usual ones are, names no line; the other's does."""
    parent = make.finetune("usf")
    rows = [parent, make.attack(parent, counts={"8/255": (500, 100)})]
    rows += [make.attack(parent, counts={"8/255": (400, 90)}, loss="margin"), make.attack(parent, "fgsm")]
    found = wide(frame(rows))
    assert list(found.index.get_level_values("variant")) == ["", "attack.loss=margin"]
    assert list(found["pgd", "8/255", "rule"]) == [0.5, 0.4]
    assert list(found["fgsm", "8/255", "exact"]) == [0.1, 0.1]


def test_adversarial_training_is_always_named(make: Any) -> None:
    parent = make.finetune("bp", task__adversarial="pgd7")
    assert set(table(frame([parent, make.attack(parent)]))["variant"]) == {"task.adversarial=pgd7"}
    both = table(frame([parent, make.finetune("bp")]))
    assert sorted(both["variant"]) == ["", "task.adversarial=pgd7"]


def test_an_audits_surrogate_is_a_setting(make: Any) -> None:
    """It is in no configuration, but the worst case depends on it."""
    parent = make.finetune("usf")
    rows = []
    for source, correct in (("a@1", 20), ("b@2", 10)):
        row = views(make, parent, [("", "", "8/255", correct)], "audit", note=source)
        del row["config"]["attack"]["note"]  # made the identities differ
        row["measurements"].append(row["measurements"][-1] | {"attack": "mifgsm", "source": source})
        rows.append(row | {"audit": {}})
    found = table(frame(rows))
    audits = found[found["attack"] == "audit"]
    assert list(audits["variant"]) == ["audit.surrogate=a@1", "audit.surrogate=b@2"]


def test_intervals_are_of_one_seeds_samples(make: Any) -> None:
    """All seeds are measured on the same 1,000 images: three times as many counts are no more evidence."""
    one = cell(table(frame([make.attack(make.finetune("usf"))])), attack="pgd", gradient="rule")
    rows = [make.attack(make.finetune("usf", seed)) for seed in (0, 1, 2)]
    three = cell(table(frame(rows)), attack="pgd", gradient="rule")
    assert (one["low"], one["high"]) == (three["low"], three["high"])
    z = 1.959963984540054
    assert one["low"] == pytest.approx(0.5 - z / (2 * math.sqrt(1000 + z**2)))


def test_small_numbers_are_not_rounded_away() -> None:
    text = to_csv(pd.DataFrame({"p": [1.0, 0.012345678, 1.23456e-20, 0.0, math.nan]}))
    assert text == 'p\n1.000000\n0.012346\n1.23e-20\n0.000000\n""\n'


def test_lines_and_columns_stand_in_the_order_people_expect(make: Any) -> None:
    rows = []
    for rule in ("fa", "dfa", "brsf", "usf", "sham", "frsf", "bp"):
        parent = make.finetune(rule, scale="xavier")
        rows.append(make.attack(parent, "square", counts={"8/255": (1, 1)}))
        rows.append(make.attack(parent, "pgd", counts={"16/255": (1, 1), "8/255": (1, 1)}))
        rows.append(make.attack(parent, "fgsm", counts={"0.5": (1, 1), "8/255": (1, 1)}))
    rows.append(make.attack(make.finetune("usf", scale="unit"), "fgsm"))
    grid = wide(frame(rows))
    rules = ["bp", "sham", "usf", "usf", "frsf", "brsf", "fa", "dfa"]
    assert list(grid.index.get_level_values("rule")) == rules
    assert list(grid.index.get_level_values("scale"))[:4] == ["", "", "unit", "xavier"]
    assert [" ".join(column) for column in grid.columns] == [
        "clean  ",
        *["fgsm 8/255 rule", "fgsm 8/255 exact", "fgsm 0.5 rule", "fgsm 0.5 exact"],
        *["pgd 8/255 rule", "pgd 8/255 exact", "pgd 16/255 rule", "pgd 16/255 exact"],
        *["square 8/255 rule", "square 8/255 exact"],
    ]


@pytest.fixture
def grid_rows(make: Any) -> list[Any]:
    """bp with two seeds and both attacks, usf with one seed and fgsm only."""
    rows = []
    for seed in (0, 1):
        bp = make.finetune("bp", seed, correct=9100 + 20 * seed)
        rows += [bp, make.attack(bp, "fgsm", counts={"8/255": (300, 300)})]
        rows += [make.attack(bp, "pgd", counts={"8/255": (10 * seed, 10 * seed)})]
    usf = make.finetune("usf", correct=8000)
    return [*rows, usf, make.attack(usf, "fgsm", counts={"8/255": (654, 299)})]


def test_a_missing_cell_is_shown_as_missing(grid_rows: list[Any]) -> None:
    assert to_csv(wide(frame(grid_rows))) == (
        "backbone,dataset,rule,scale,variant,clean,"
        "fgsm 8/255 rule,fgsm 8/255 exact,pgd 8/255 rule,pgd 8/255 exact\n"
        "resnet20,cifar10-jpeg,bp,,,0.911000,0.300000,0.300000,0.005000,0.005000\n"
        "resnet20,cifar10-jpeg,usf,weight_rms,,0.800000,0.654000,0.299000,,\n"
    )
    assert r"usf & weight\_rms & 80.0 & 65.4 & 29.9 & -- & -- \\" in to_latex(frame(grid_rows))


def test_text_by_hand(grid_rows: list[Any]) -> None:
    assert (
        to_text(frame(grid_rows))
        == """\
backbone resnet20, dataset cifar10-jpeg

                            ────── fgsm ──────  ───── pgd ──────
                            ───── 8/255 ──────  ──── 8/255 ─────
rule  scale          clean      rule     exact     rule    exact
bp                91.1±0.1  30.0±0.0  30.0±0.0  0.5±0.7  0.5±0.7
usf   weight_rms      80.0      65.4      29.9       --       --

accuracy in % (mean and sample std over seeds); n = 10000 (clean), 1000 (fgsm, pgd); seeds = 1 to 2 (clean,
fgsm), 2 (pgd)
rule: attacked through the rule's own backward pass; exact: through the true gradient of the same weights; --:
not measured
"""
    )


def test_text_continues_in_further_blocks_where_it_would_not_fit(grid_rows: list[Any]) -> None:
    narrow, full = to_text(frame(grid_rows), width=50), to_text(frame(grid_rows), width=200)
    blocks = narrow.split("\n\n")[1:-1]
    assert len(blocks) == 2
    assert "fgsm" in blocks[0]
    assert "pgd" in blocks[1]
    assert all(len(line) <= 50 for block in blocks for line in block.split("\n"))
    for block in blocks:
        assert re.search(r"^usf +weight_rms", block, re.MULTILINE)
    figures = re.compile(r"\d+\.\d±?|--$")
    assert sorted(figures.findall(narrow)) == sorted(figures.findall(full))


def test_without_attacks_text_and_latex_have_one_header_line(make: Any) -> None:
    rows = [make.finetune("bp"), make.finetune("usf")]
    assert to_text(frame(rows)).split("\n")[2:5] == [
        "rule  scale       clean",
        "bp                 90.0",
        "usf   weight_rms   90.0",
    ]
    assert "multicolumn" not in to_latex(frame(rows))
    assert r"rule & scale & clean \\" in to_latex(frame(rows))


def latex_widths(text: str) -> list[int]:
    """Columns that each line of a tabular fills."""
    found = []
    for line in re.findall(r"^(.*)\\\\$", text, re.MULTILINE):
        cells = re.split(r"(?<!\\)&", line)
        spans = [re.match(r"\s*\\multicolumn\{(\d+)\}\{c\}\{[^{}]*\}\s*$", cell) for cell in cells]
        found.append(sum(int(span[1]) if span else 1 for span in spans))
    return found


def check_latex(text: str) -> None:
    spec = re.search(r"\\begin\{tabular\}\{(l+r+)\}", text)
    assert spec
    assert set(latex_widths(text)) == {len(spec[1])}
    body = "\n".join(line for line in text.split("\n") if not line.startswith("%"))
    assert body.count("{") - body.count(r"\{") == body.count("}") - body.count(r"\}")
    assert [body.count(name) for name in (r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}")] == [
        1
    ] * 4
    assert not re.search(r"(?<!\\)[_#%]", body), "unescaped"
    assert set(re.findall(r"\\([a-z]+)", body)) <= {
        *("begin", "end", "toprule", "midrule", "bottomrule", "cmidrule", "multicolumn", "pm"),
        *("textbackslash", "textasciitilde", "textasciicircum"),
    }


def test_latex_by_hand(grid_rows: list[Any]) -> None:
    text = to_latex(frame(grid_rows))
    check_latex(text)
    notes, body = text.split(r"\begin{tabular}")
    assert all(line.startswith("% ") for line in notes.strip().split("\n"))
    assert "n = 10000 (clean), 1000 (fgsm, pgd); seeds = 1 to 2 (clean, fgsm), 2 (pgd)" in notes
    assert (
        body
        == r"""{llrrrrr}
\toprule
 &  &  & \multicolumn{2}{c}{fgsm} & \multicolumn{2}{c}{pgd} \\
\cmidrule(lr){4-5} \cmidrule(lr){6-7}
 &  &  & \multicolumn{2}{c}{8/255} & \multicolumn{2}{c}{8/255} \\
\cmidrule(lr){4-5} \cmidrule(lr){6-7}
rule & scale & clean & rule & exact & rule & exact \\
\midrule
bp &  & 91.1 $\pm$ 0.1 & 30.0 $\pm$ 0.0 & 30.0 $\pm$ 0.0 & 0.5 $\pm$ 0.7 & 0.5 $\pm$ 0.7 \\
usf & weight\_rms & 80.0 & 65.4 & 29.9 & -- & -- \\
\bottomrule
\end{tabular}
"""
    )


def test_latex_escapes_what_users_name(make: Any) -> None:
    rows = [
        make.finetune("bp", dataset__label=r"my_set #1 {50%} $a&b$ \ ~x^2"),
        make.finetune("bp", dataset__label="other_set"),
    ]
    text = to_latex(frame(rows))
    check_latex(text)
    assert r"my\_set \#1 \{50\%\} \$a\&b\$ \textbackslash{} \textasciitilde{}x\textasciicircum{}2" in text


def test_several_datasets_are_columns_of_the_lines_not_of_the_heading(make: Any) -> None:
    rows = [make.finetune(dataset__label=label) for label in ("digits", "mnist")]
    assert to_text(frame(rows)).startswith("backbone resnet20, scale weight_rms\n\ndataset  rule  clean\n")


def test_rows_without_a_test_measurement_are_said(make: Any) -> None:
    row = make.finetune()
    with pytest.raises(RequestError, match="test split"):
        table(frame([{**row, "measurements": row["measurements"][:1]}]))


@st.composite
def campaigns(draw: st.DrawFn) -> list[tuple[str, str, float, int, str, tuple[int, int, int]]]:
    """Runs: rule, scale, learning rate, seed, attack and counts, no two alike but for the counts."""
    run = st.tuples(
        st.sampled_from(["bp", "usf", "fa"]),
        st.sampled_from(["xavier", "unit"]),
        st.sampled_from([0.1, 0.01]),
        st.integers(0, 3),
        st.sampled_from(["fgsm", "pgd"]),
    )
    runs = draw(
        st.lists(run, min_size=1, max_size=8, unique_by=lambda r: (r[0], r[0] != "bp" and r[1], *r[2:]))
    )
    counts = st.tuples(*[st.integers(0, 1000)] * 2)
    return [(*run, *draw(counts)) for run in runs]


def build(make: Any, campaign: list[Any]) -> list[Any]:
    rows = []
    for rule, scale, lr, seed, name, through_rule, exact in campaign:
        parent = make.finetune(rule, seed, scale=scale, optimizer__lr=lr, correct=9000 + seed)
        rows += [parent, make.attack(parent, name, clean=900 + seed, counts={"8/255": (through_rule, exact)})]
    return rows


@settings(max_examples=15, deadline=None)
@given(campaign=campaigns(), seed=st.integers(0, 1000))
def test_order_of_rows_never_shows(make: Any, campaign: Any, seed: int, tmp_path_factory: Any) -> None:
    rows = build(make, campaign)
    shuffled = random.Random(seed).sample(rows, len(rows)) + rows[:1]
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"

    def outputs(rows: list[Any]) -> list[Any]:
        write_rows(rows, path)
        tables = [table(frame(rows)), wide(frame(rows)), lines(frame(rows)), frame(rows)]
        return [*map(to_csv, tables), to_latex(frame(rows)), to_text(frame(rows)), path.read_bytes()]

    assert outputs(rows) == outputs(shuffled)
    check_latex(to_latex(frame(rows)))


@settings(max_examples=15, deadline=None)
@given(campaign=campaigns())
def test_mean_and_std_are_those_of_the_seeds(make: Any, campaign: Any) -> None:
    expected = defaultdict(list)
    for rule, scale, lr, _, name, through_rule, exact in campaign:
        for gradient, count in (("rule", through_rule), ("exact", exact)):
            expected[rule, "" if rule == "bp" else scale, lr, name, gradient].append(count / 1000)
    found = table(frame(build(make, campaign)))
    attacked = found[found["attack"] != "clean"]
    assert len(attacked) == len(expected)
    for (rule, scale, lr, name, gradient), values in expected.items():
        same = attacked[attacked["variant"].isin(["", f"optimizer.lr={lr}"])]
        line = cell(same, rule=rule, scale=scale, attack=name, gradient=gradient)
        assert line["seeds"] == len(values)
        assert line["n"] == 1000
        assert line["mean"] == pytest.approx(statistics.fmean(values))
        if len(values) > 1:
            assert line["std"] == pytest.approx(statistics.stdev(values))
        else:
            assert math.isnan(line["std"])
    nets = {(rule, rule != "bp" and scale, lr, seed) for rule, scale, lr, seed, *_ in campaign}
    clean = sum(9000 + seed + 900 + seed for *_, seed in nets)
    assert frame(build(make, campaign))["correct"].sum() == clean + sum(sum(run[-2:]) for run in campaign)
