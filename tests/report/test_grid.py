"""The grid shows each image as it is, the differences around grey, and which names are wrong."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from sstune.report.grid import LINES, WRONG, Attacked, image_grid, magnified

Pixels = npt.NDArray[np.uint8]
SHAPE = (2, 3, 4, 4)
CLASSES = ["cat", "dog", "ship"]


@given(arrays.arrays(np.uint8, SHAPE), arrays.arrays(np.int64, SHAPE, elements=st.integers(-30, 30)))
def test_differences_can_be_read_back(clean: Pixels, added: npt.NDArray[np.int64]) -> None:
    adversarial = (clean + added).clip(0, 255).astype(np.uint8)
    shown, times = magnified(clean, adversarial)
    difference = adversarial.astype(int) - clean
    np.testing.assert_array_equal((shown.astype(int) - 128) // times, difference)
    largest = abs(difference).max()
    assert times == 127 or times * largest <= 127 < (times + 1) * largest


def test_the_largest_difference_there_can_be() -> None:
    clean = np.array([[[[0, 255]]]], dtype=np.uint8)
    shown, times = magnified(clean, 255 - clean)
    assert (shown.tolist(), times) == ([[[[255, 0]]]], 1)


def grid(k: int = 3, channels: int = 3, n_attacks: int = 2, right: bool = True) -> Pixels:
    """The picture, RGB, of images of one colour each."""
    clean = np.zeros((k, channels, 8, 8), dtype=np.uint8)
    clean[:] = np.linspace(40, 200, k).round().astype(np.uint8)[:, None, None, None]
    labels = np.arange(k) % 3
    predicted = labels if right else (labels + 1) % 3
    attacked = [Attacked(f"pgd exact {place}/255", clean + 8, predicted) for place in range(n_attacks)]
    with Image.open(io.BytesIO(image_grid(clean, labels, labels, attacked, CLASSES))) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def share(picture: Pixels, colour: tuple[int, int, int]) -> float:
    return float((picture == colour).all(axis=2).mean())


@pytest.mark.parametrize("channels", [1, 3])
def test_images_and_differences_are_there_as_they_are(channels: int) -> None:
    picture = grid(k=3, channels=channels, n_attacks=1)
    cells = [share(picture, (level, level, level)) for level in (40, 120, 200, 48, 128, 208)]
    assert min(cells) > 0.02  # each image is one of nine panels, and 8 more is in the next column
    difference = 128 + 8 * (127 // 8)
    assert share(picture, (difference,) * 3) == pytest.approx(3 * np.mean(cells), rel=0.1)


def test_a_wrong_name_is_red() -> None:
    red = tuple(int(WRONG[place : place + 2], 16) for place in (1, 3, 5))
    assert share(grid(right=True), red) == 0
    assert share(grid(right=False), red) > 0


def test_many_samples_are_thinned_out_and_first_and_last_stay() -> None:
    many, full = grid(k=40, n_attacks=0), grid(k=LINES, n_attacks=0)
    assert many.shape == pytest.approx(full.shape, abs=20)
    for level in (40, 200):
        assert share(many, (level,) * 3) > 0.01


def test_one_sample_without_attack() -> None:
    assert grid(k=1, n_attacks=0).size


@pytest.mark.parametrize("name", [r"$\frac$", r"_%&#{}~^\ $", "two\nlines", "\0\x1b[31m", "caf\udce9", ""])
@pytest.mark.filterwarnings("error")
def test_any_name_can_be_drawn(name: str) -> None:
    """A finished attack is not lost to what a class is called."""
    clean, labels = np.zeros((2, 1, 8, 8), dtype=np.uint8), np.array([0, 1])
    attacked = [Attacked(f"pgd {name}", clean, labels)]
    assert image_grid(clean, labels, labels, attacked, [name, "dog"]).startswith(b"\x89PNG")
