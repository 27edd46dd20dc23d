"""The map of transfer holds, at the right place, what the attacks left; and is drawn of transfer only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from sstune.report.measurements import frame
from sstune.report.transfer import transfer_map


def transferred(make: Any, parent: Any, correct: dict[tuple[str, str], int], **changes: Any) -> Any:
    """``correct``: (source, eps) -> of 1,000; a source "exact" is the target's own gradient."""
    row = make.attack(parent, "mifgsm", counts={}, **changes)
    for (source, eps), count in correct.items():
        view = {"gradient": "exact"} if source == "exact" else {"gradient": "surrogate", "source": source}
        entry = {"split": "test", "attack": "mifgsm", "eps": eps, "n": 1000, "correct": count}
        row["measurements"].append(entry | view)
    return row


def test_the_map_by_hand(make: Any, drawn: list[Figure], tmp_path: Path) -> None:
    bp, *usf = make.finetune("bp"), make.finetune("usf", 0), make.finetune("usf", 1)
    rows = [
        transferred(make, bp, {("a@1", "4/255"): 500, ("b@2", "4/255"): 600, ("a@1", "8/255"): 100}),
        transferred(make, usf[0], {("a@1", "4/255"): 300, ("exact", "4/255"): 20}),
        transferred(make, usf[1], {("a@1", "4/255"): 400, ("exact", "4/255"): 40}),
        make.attack(bp, "pgd"),
    ]
    assert transfer_map(frame(rows), tmp_path / "transfer") == [
        tmp_path / "transfer.png",
        tmp_path / "transfer.svg",
    ]
    small, large = drawn[0].axes
    assert [axes.get_title() for axes in (small, large)] == ["eps 4/255", "eps 8/255"]
    assert [text.get_text() for text in small.get_yticklabels()] == ["a@1", "b@2", "its own exact gradient"]
    assert [text.get_text() for text in small.get_xticklabels()] == ["bp", "usf weight_rms"]
    nan = np.nan
    grids = [np.ma.filled(axes.images[0].get_array(), nan) for axes in (small, large)]
    np.testing.assert_allclose(grids[0], [[50, 35], [60, nan], [nan, 3]])
    np.testing.assert_allclose(grids[1], [[10, nan], [nan, nan], [nan, nan]])
    assert {text.get_text() for text in small.texts} == {"50.0", "35.0", "60.0", "3.0"}


def test_another_way_to_attack_is_another_row_of_panels(
    make: Any, drawn: list[Figure], tmp_path: Path
) -> None:
    bp = make.finetune("bp")
    rows = [transferred(make, bp, {("a@1", "4/255"): 10 * steps}, steps=steps) for steps in (10, 20)]
    transfer_map(frame(rows), tmp_path / "transfer")
    labels = [axes.get_ylabel() for axes in drawn[0].axes]
    assert labels == ["mifgsm (attack.steps=10)", "mifgsm (attack.steps=20)"]
    assert [float(axes.images[0].get_array()[0, 0]) for axes in drawn[0].axes] == [10, 20]


def test_without_transfer_there_is_no_map(make: Any, tmp_path: Path) -> None:
    assert transfer_map(frame([make.attack(make.finetune("usf"))]), tmp_path / "transfer") == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("error")  # matplotlib's, where a layout collapses
def test_long_names_have_room(make: Any, drawn: list[Figure], tmp_path: Path) -> None:
    nets = [make.finetune("bp", task__adversarial="pgd7", task__label_smoothing=0.25 * i) for i in range(2)]
    transfer_map(
        frame([transferred(make, net, {("a@1", "4/255"): 10}) for net in nets]), tmp_path / "transfer"
    )
    (axes,) = drawn[0].axes
    assert all("task.adversarial=pgd7" in text.get_text() for text in axes.get_xticklabels())
    top = max(text.get_window_extent().y1 for text in axes.get_xticklabels())
    assert top <= axes.get_window_extent().y0  # below the panel
