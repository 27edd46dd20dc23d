"""``attack.save_images``: the images of an attack, as a file for programs and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sstune import backbones
from sstune.cli import main
from sstune.commands.images import drawn
from sstune.commands.lineage import open_source
from sstune.commands.weights import Weights
from sstune.schema import AttackConfig

EPS = ["16/255", "32/255"]
LINE = ["attack=pgd", "attack.n=20", f"attack.eps=[{','.join(EPS)}]", "attack.steps=3", "threads=1"]


@pytest.fixture(scope="module")
def run(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished attack that keeps seven images."""
    out = tmp_path_factory.mktemp("pictures")
    assert main(["attack", f"init_from={trained}", f"out={out}", *LINE, "attack.save_images=7"]) == 0
    (run,) = (out / "attack").iterdir()
    return run


@pytest.fixture(scope="module")
def saved(run: Path) -> dict[str, Any]:
    with np.load(run / "images.npz") as file:
        return dict(file)


CELLS = [f"{gradient} {eps}" for gradient in ("rule", "exact") for eps in EPS]


def test_every_cell_has_its_images(saved: dict[str, Any]) -> None:
    named = [name for key in ("clean", *CELLS) for name in (key, f"{key}/predicted")]
    assert sorted(saved) == sorted(["samples", "labels", *named])
    for key in ("clean", *CELLS):
        assert (saved[key].shape, saved[key].dtype) == ((7, 1, 8, 8), np.uint8)
        assert saved[f"{key}/predicted"].shape == saved["labels"].shape == (7,)


def test_images_are_in_the_ball(saved: dict[str, Any]) -> None:
    for key in CELLS:
        added = saved[key].astype(int) - saved["clean"]
        assert 0 < abs(added).max() <= int(key.split()[1].split("/")[0])


def test_predictions_are_the_networks(saved: dict[str, Any], trained: Path) -> None:
    source = open_source(trained)
    config = source.config
    assert config is not None
    network = backbones.build(config.backbone, (1, 8, 8), 10, config.dataset.mean, config.dataset.std)
    Weights(source).load_into(network)
    network.eval()
    for key in ("clean", *CELLS):
        with torch.no_grad():
            expected = network(torch.from_numpy(saved[key]).float() / 255).argmax(1)
        assert saved[f"{key}/predicted"].tolist() == expected.tolist()


def test_they_agree_with_the_outcomes(saved: dict[str, Any], run: Path) -> None:
    """The digits' pixels, and these eps, are of 8 bits, but a step's length is not."""
    with np.load(run / "outcomes.npz") as outcomes:
        samples, clean = outcomes["samples"], outcomes["clean"]
        shown = np.searchsorted(samples, saved["samples"])
        assert (samples[shown] == saved["samples"]).all()
        right = saved["clean/predicted"] == saved["labels"]
        assert right.tolist() == clean[shown].tolist()
        for key in CELLS:
            untouched = ~clean[shown]
            assert (saved[key][untouched] == saved["clean"][untouched]).all()


def test_the_picture_can_be_looked_at(run: Path) -> None:
    with Image.open(run / "images.png") as image:
        assert image.width > 900  # nine columns: clean, and two for each of four cells
        assert image.height > 700


def test_without_being_asked_for_there_are_none(trained: Path, tmp_path: Path) -> None:
    assert main(["attack", f"init_from={trained}", f"out={tmp_path}", *LINE]) == 0
    (run,) = (tmp_path / "attack").iterdir()
    assert not list(run.glob("images.*"))


@pytest.mark.parametrize(
    ("views", "eps", "expected"),
    [
        (["rule", "exact"], ["8/255", "2/255"], ["rule 2/255", "rule 8/255", "exact 2/255", "exact 8/255"]),
        (
            ["rule", "exact"],
            ["2/255", "4/255", "8/255"],
            ["rule 2/255", "rule 8/255", "exact 2/255", "exact 8/255"],
        ),
        (
            ["none"],
            ["1/255", "2/255", "4/255", "8/255"],
            ["none 1/255", "none 2/255", "none 4/255", "none 8/255"],
        ),
        (
            ["rule", "exact", "surrogate a@1"],
            ["2/255", "8/255"],
            ["rule 8/255", "exact 8/255", "surrogate a@1 8/255"],
        ),
        (["rule"], ["0.5", "1/255", "0.1", "2/255", "0.9"], ["rule 1/255", "rule 0.9"]),
    ],
)
def test_what_is_drawn(views: list[str], eps: list[str], expected: list[str]) -> None:
    cells: Any = {f"{gradient_source} {one}": None for gradient_source in views for one in eps}
    assert sorted(drawn(AttackConfig("pgd", eps), cells)) == sorted(expected)
