"""Decoding of an image file, and resizing or cropping of its pixels."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from sstune.preprocessing import Preprocessing

Pixels = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")  # by content; the suffix does not matter
MAX_PIXELS = 2**27  # of an image before or after it is resized; 384 MiB as RGB
MAX_RATIO = 1000  # of the longer side to the shorter: resizing a strip of 60,000 x 1 takes gigabytes

_ORIENTATION, _BITS_PER_SAMPLE = 0x0112, 0x0102  # tags of EXIF and TIFF

# PIL warns of decompression bombs, which are refused here, and of bad metadata, which leave pixels intact.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class View:
    """How an image of any size is brought to ``size`` (height, width) pixels.

    It is resized, at a constant aspect ratio, to cover ``size / crop_pct``; then the centre is cropped.
    """

    size: tuple[int, int]
    crop_pct: float = 1.0
    interpolation: str = "bilinear"

    @classmethod
    def of(cls, preprocessing: Preprocessing) -> View:
        """The view that published weights expect."""
        return cls(preprocessing.size, preprocessing.crop_pct, preprocessing.interpolation.value)

    def centre(self, image: Image.Image) -> Image.Image:
        """Resize and centre crop, for evaluation; for a square, as torchvision's Resize and CenterCrop."""
        height, width = self.size
        image = self._resized(image, self._covering(image))
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        return image.crop((left, top, left + width, top + height))

    def crop(self, image: Image.Image, box: Box) -> Image.Image:
        """Crop ``box`` (top, left, height, width) and resize it to ``size``, whatever its aspect ratio."""
        top, left, height, width = box
        part = image.crop((left, top, left + width, top + height))
        return self._resized(part, (self.size[1], self.size[0]))

    def _covering(self, image: Image.Image) -> tuple[int, int]:
        """(width, height) at the image's aspect ratio, the smallest that cover ``size / crop_pct``."""
        least = [side / self.crop_pct + 1e-6 for side in self.size]  # 224 / (224 / 232) is less than 232
        height, width = int(least[0]), int(least[1])
        if width * image.height >= height * image.width:
            return width, int(width * image.height / image.width)
        return int(height * image.width / image.height), height

    def check(self, image: Image.Image) -> None:
        """Raise ValueError if resizing the image would give more than ``MAX_PIXELS``."""
        width, height = self._covering(image)
        if width * height > MAX_PIXELS:
            raise ValueError(
                f"{image.width:,} x {image.height:,} pixels would be resized to {width:,} x {height:,}"
            )

    def _resized(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        if size == image.size:
            return image
        return image.resize(size, Image.Resampling[self.interpolation.upper()])


def open_image(content: bytes, rgb: bool = False) -> Image.Image:
    """Decode an image: to mode L if it is grey and ``rgb`` is false, otherwise to mode RGB.

    The EXIF orientation is applied. Of several frames the first is returned.

    Raises:
        Exception: of nearly any type, if the content is not a complete image in one of ``FORMATS``, has more
            than 8 bits per channel or is too large. PIL detects truncated files; a JPEG with wrong bytes in
            the middle may decode to wrong pixels.
    """
    try:
        opened = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image") from None
    except Image.DecompressionBombError:
        raise ValueError(f"a decompression bomb; at most {MAX_PIXELS:,} pixels are allowed") from None
    with opened:
        width, height = opened.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width:,} x {height:,} pixels; at most {MAX_PIXELS:,} are allowed")
        if max(width, height) > MAX_RATIO * min(width, height):
            raise ValueError(f"{width:,} x {height:,} pixels; the aspect ratio is limited to {MAX_RATIO:,}")
        if _is_deep(opened):
            raise ValueError("more than 8 bits per channel, expected 8")
        upright = _upright(opened)
        return upright.convert("L" if upright.mode in ("1", "L") and not rgb else "RGB")


def _is_deep(opened: Image.Image) -> bool:
    """Whether samples have more than 8 bits, which PIL truncates silently in images of several channels."""
    if opened.mode.startswith(("I", "F")) or max(_tiff_bits(opened), default=8) > 8:
        return True
    for tile in getattr(opened, "tile", None) or []:
        args = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        sixteen = any(isinstance(arg, str) and ";16" in arg for arg in args)
        if sixteen and opened.format != "BMP":  # in BMP, 16 bits are those of a pixel
            return True
        if opened.format == "PPM" and tile[0] != "raw" and isinstance(args[-1], int) and args[-1] > 255:
            return True  # the largest value of a sample
    return False


def _tiff_bits(opened: Image.Image) -> tuple[int, ...]:
    return tuple(opened.tag_v2.get(_BITS_PER_SAMPLE, ())) if opened.format == "TIFF" else ()  # type: ignore[attr-defined]


def _upright(opened: Image.Image) -> Image.Image:
    opened.load()
    try:
        if opened.getexif().get(_ORIENTATION, 1) != 1:
            return ImageOps.exif_transpose(opened)
    except Exception:  # unreadable metadata; the pixels are fine
        pass
    return opened


def pixels(image: Image.Image) -> Pixels:
    """Pixels, uint8 [H, W, C], with C = 1 for a grey image and 3 otherwise."""
    return np.asarray(image).reshape(image.height, image.width, -1)
