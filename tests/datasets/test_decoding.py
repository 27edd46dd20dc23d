"""From the bytes of a file to pixels: which way up, and how many bits."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from made import pairs
from PIL import Image

from sstune.datasets import batches, load
from sstune.datasets.decoding import MAX_PIXELS, View, open_image, pixels
from sstune.schema import FolderConfig

UPRIGHT = np.random.default_rng(0).integers(0, 256, (6, 10, 3), np.uint8)
# How a camera that was held another way stores the upright image; EXIF 2.3, 4.6.4.A.
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: image.transpose(1, 0, 2)[::-1],
    7: lambda image: image.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda image: image.transpose(1, 0, 2)[:, ::-1],
}


def photograph(orientation: int, kind: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation](UPRIGHT)))
    settings = {"lossless": True} if kind == "WEBP" else {}
    image.save(file, kind, exif=exif, **settings)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", STORED)
def test_images_are_turned_upright(orientation: int, kind: str) -> None:
    found = pixels(open_image(photograph(orientation, kind))).astype(int)
    assert found.shape == UPRIGHT.shape
    if kind == "JPEG":  # noise does not survive it, but the wrong way up is further from it by far
        others = [np.abs(np.resize(turn(UPRIGHT), found.shape) - found).mean() for turn in STORED.values()]
        assert np.abs(UPRIGHT - found).mean() == min(others)
    else:
        assert np.array_equal(found, UPRIGHT)


@pytest.mark.parametrize("stream", [False, True])
def test_in_memory_and_streamed(stream: bool, tmp_path: Path) -> None:
    for orientation in STORED:
        for split in ("train", "test"):
            file = tmp_path / split / "a" / f"{orientation}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(photograph(orientation))
    config = FolderConfig(
        "folder", root=str(tmp_path), image_size=6, stream=stream, cache=str(tmp_path / "cache")
    )
    ((images, _),) = pairs(batches(load(config, workers=0).test, 8, "cpu"))
    expected = torch.from_numpy(UPRIGHT[:, 2:8].transpose(2, 0, 1).copy())
    assert all(torch.equal((image * 255).round().byte(), expected) for image in images)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01", b"Exif\0\0" + b"x" * 99]
)
def test_metadata_that_cannot_be_read_does_not_matter(exif: bytes) -> None:
    file = io.BytesIO()
    Image.fromarray(UPRIGHT).save(file, "JPEG", exif=exif)
    assert open_image(file.getvalue()).size == (10, 6)


def test_eight_bits_are_enough_for_any_of_the_formats() -> None:
    for kind in ("PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM", "JPEG"):
        for mode in ("L", "RGB"):
            file = io.BytesIO()
            Image.fromarray(UPRIGHT).convert(mode).save(file, kind)
            assert open_image(file.getvalue()).size == (10, 6)
    assert open_image(b"P6 2 1 100\n" + bytes([0, 50, 100] * 2)).getpixel((0, 0)) == (0, 128, 255)


def test_an_image_that_would_be_enlarged_beyond_measure() -> None:
    source = View((4000, 4000))
    source.check(Image.new("L", (80, 10)))
    with pytest.raises(ValueError, match="900 x 10 pixels would be resized to 360,000 x 4,000"):
        source.check(Image.new("L", (900, 10)))
    assert MAX_PIXELS < 360_000 * 4000


def test_large_photographs_may_be_opened() -> None:
    """A header of 100 million pixels is refused for its pixels' absence only."""
    header = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 11_600, 8_700, 1, 24, 0, 0, 0, 0, 0, 0)
    with pytest.raises(OSError, match="truncated"):
        open_image(header)
