"""One image file's pixels: decoded, and resized as for evaluation or cropped as for training."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]


class Preprocessing(Protocol):
    """What a pre-trained backbone expects of images; :class:`sstune.backbones.Preprocessing` is one."""

    @property
    def size(self) -> int | tuple[int, int]: ...

    @property
    def crop_pct(self) -> float: ...

    @property
    def interpolation(self) -> str: ...


@dataclass(frozen=True)
class View:
    """How an image of any size becomes one of ``size`` (height, width) pixels.

    It is resized until it covers ``size`` / ``crop_pct``, its aspect ratio kept, and the centre is cropped.
    """

    size: tuple[int, int]
    crop_pct: float = 1.0
    interpolation: str = "bilinear"

    @classmethod
    def of(cls, wanted: Preprocessing) -> View:
        """The view that a pre-trained backbone expects; a ``size`` of one number is a square."""
        size = (wanted.size, wanted.size) if isinstance(wanted.size, int) else wanted.size
        return cls((int(size[0]), int(size[1])), float(wanted.crop_pct), str(wanted.interpolation))

    def centre(self, image: Image.Image) -> Image.Image:
        """As in evaluation; for a square, to the pixel what torchvision's Resize and CenterCrop give."""
        height, width = self.size
        image = self._resized(image, self._covering(image))
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        return image.crop((left, top, left + width, top + height))

    def crop(self, image: Image.Image, box: Box) -> Image.Image:
        """The part of an image in ``box`` (top, left, height, width), resized, its aspect ratio given up."""
        top, left, height, width = box
        part = image.crop((left, top, left + width, top + height))
        return self._resized(part, (self.size[1], self.size[0]))

    def _covering(self, image: Image.Image) -> tuple[int, int]:
        """Width and height that cover what is wanted; the side that needs more is met, the other follows."""
        least = [side / self.crop_pct + 1e-6 for side in self.size]  # 224 / (224 / 232) is less than 232
        height, width = int(least[0]), int(least[1])
        if width * image.height >= height * image.width:
            return width, int(width * image.height / image.width)
        return int(height * image.width / image.height), height

    def _resized(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        if size == image.size:
            return image
        return image.resize(size, Image.Resampling[self.interpolation.upper()])


def open_image(content: bytes, rgb: bool = False) -> Image.Image:
    """A decoded image of mode L where it is grey and ``rgb`` does not forbid it, otherwise of mode RGB.

    Raises:
        Exception: of nearly any kind, where the content is no whole image of at most 8 bits per channel. PIL
            notices a file that ends early; a JPEG with wrong bytes in the middle may decode to wrong pixels.
    """
    with Image.open(io.BytesIO(content)) as opened:
        if opened.mode.startswith(("I", "F")):
            raise ValueError(f"pixels of mode {opened.mode}, expected 8 bits per channel")
        return opened.convert("L" if opened.mode in ("1", "L") and not rgb else "RGB")


def pixels(image: Image.Image) -> Pixels:
    """Pixels [H, W, C], C being 1 for a grey image and 3 for any other."""
    return np.asarray(image).reshape(image.height, image.width, -1)
