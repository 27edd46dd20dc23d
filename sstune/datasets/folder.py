"""An ImageFolder tree ``<split>/<class>/<image>``, a directory or a tar archive, decoded into memory once."""

from __future__ import annotations

import difflib
import io
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from sstune.datasets import cache
from sstune.datasets.archive import digests, may_be_placed, place, read
from sstune.datasets.cache import Decoded
from sstune.datasets.splits import Split, Splits, split_off
from sstune.schema import FolderConfig, RequestError

Pixels = npt.NDArray[np.uint8]

MAX_BYTES = 4 * 2**30  # decoded images are held in memory as one array
_SMALL_FILE = 16 * 2**10  # bytes; decoding less takes less time than handing it to another thread
_IN_FLIGHT = 64  # larger files being decoded at a time, which bounds the memory they hold


def load_folder(config: FolderConfig) -> Splits:
    """Read, decode (or take from the cache) and arrange a folder dataset.

    Classes are the sorted folder names of the train split, images are sorted by (class, file name). Images
    have one channel if all of them are grey, otherwise three.

    Raises:
        RequestError: unreadable or undecodable files, images of several sizes without ``image_size``, more
            than ``MAX_BYTES``, a split that is absent or named twice, a class that the train split lacks.
    """
    root = Path(config.root).expanduser()
    path = cache.cache_file(config.cache, digests(root)[1], config.image_size)
    decoded = cache.load(path)
    if decoded is None:
        decoded = decode(root, config.image_size)
        cache.save(path, decoded)
    return _arrange(decoded, config)


def decode(root: Path, image_size: int | None) -> Decoded:
    """Decode every image below ``root``, of whichever split, in sorted order.

    With ``image_size`` the shorter side is resized to it (bilinear, antialiased) and the centre is cropped.

    Raises:
        RequestError: see :func:`load_folder`.
    """
    pixels: dict[str, Pixels] = {}
    area, channels = 0, 1
    for name, image in _stream(root, image_size):
        if name in pixels:
            raise RequestError(f"dataset.root: {name} appears twice in {root}")
        pixels[name] = image
        area += image.shape[0] * image.shape[1]
        channels = max(channels, image.shape[2])
        if area * channels > MAX_BYTES:
            raise RequestError(
                f"dataset.root: the images of {root} take more than {MAX_BYTES / 2**30:g} GiB of memory once"
                " decoded, which is not supported yet; set a smaller dataset.image_size"
            )
    places = sorted(place(pixels).items(), key=lambda item: item[1].split("/"))
    if not places:
        raise RequestError(f"dataset.root: no image <split>/<class>/<image> in {root}")
    height, width = _common_size([(name, pixels[name]) for name, _ in places], root)
    images = np.empty((len(places), channels, height, width), np.uint8)
    for row, (name, _) in enumerate(places):  # popped, so that two copies of all images never coexist
        images[row] = pixels.pop(name).transpose(2, 0, 1)
    return Decoded(images, [path for _, path in places])


def _common_size(images: list[tuple[str, Pixels]], root: Path) -> tuple[int, int]:
    first, expected = images[0][0], images[0][1].shape[:2]
    for name, image in images:
        if image.shape[:2] != expected:
            sizes = [f"{width}x{height}" for height, width in (expected, image.shape[:2])]
            raise RequestError(
                f"dataset.image_size: must be set, for the images of {root} differ in size:"
                f" {first} has {sizes[0]} pixels, {name} {sizes[1]}"
            )
    return expected[0], expected[1]


def _stream(root: Path, image_size: int | None) -> Iterator[tuple[str, Pixels]]:
    """Names and pixels; large files are decoded in threads (PIL releases the interpreter), a few ahead."""
    pending: deque[tuple[str, Future[Pixels]]] = deque()
    with ThreadPoolExecutor() as pool:
        for name, content in read(root):
            if not may_be_placed(name):
                continue
            if len(content) < _SMALL_FILE:
                yield name, _decode_file(f"{name} in {root}", content, image_size)
                continue
            pending.append((name, pool.submit(_decode_file, f"{name} in {root}", content, image_size)))
            if len(pending) == _IN_FLIGHT:
                ready, future = pending.popleft()
                yield ready, future.result()
        for ready, future in pending:
            yield ready, future.result()


def _decode_file(name: str, content: bytes, image_size: int | None) -> Pixels:
    """One file's pixels [H, W, C], C being 1 for a grey image and 3 for any other."""
    try:
        with Image.open(io.BytesIO(content)) as opened:
            if opened.mode.startswith(("I", "F")):
                raise ValueError(f"pixels of mode {opened.mode}, expected 8 bits per channel")
            image = opened.convert("L" if opened.mode in ("1", "L") else "RGB")
            if image_size is not None:
                image = _resize(image, image_size)
            return np.asarray(image).reshape(image.height, image.width, -1)
    except Exception as error:  # PIL's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise RequestError(f"dataset.root: cannot decode {name}: {error}") from error


def _resize(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side and crop the centre, to the pixel as torchvision's Resize and CenterCrop do."""
    shorter = min(image.size)
    width, height = (int(size * side / shorter) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def _arrange(decoded: Decoded, config: FolderConfig) -> Splits:
    asked = {"train_split": config.train_split, "test_split": config.test_split}
    if config.val_split is not None:
        asked["val_split"] = config.val_split
    if len(set(asked.values())) < len(asked):
        names = ", ".join(f"{key}={name}" for key, name in asked.items())
        raise RequestError(f"dataset: splits must not share images, but two are the same folder: {names}")

    placed = [path.split("/", 2) for path in decoded.paths]
    split_of = np.array([split for split, _, _ in placed], dtype=object)
    classes = sorted({name for split, name, _ in placed if split == config.train_split})
    label_of = {name: label for label, name in enumerate(classes)}

    def take(key: str) -> Split:
        rows = np.flatnonzero(split_of == asked[key])
        if not len(rows):
            known = sorted(set(split_of))
            nearest_first = difflib.get_close_matches(asked[key], known, n=len(known), cutoff=0.0)
            where = f"not found in {config.root}; there are: {', '.join(nearest_first)}"
            raise RequestError(f"dataset.{key}: {asked[key]!r} {where}")
        strangers = sorted({placed[row][1] for row in rows} - label_of.keys())
        if strangers:
            where = f"{asked[key]!r} is absent from {config.train_split!r}"
            raise RequestError(f"dataset.{key}: class {strangers[0]!r} of {where}")
        labels = torch.tensor([label_of[placed[row][1]] for row in rows])
        images = decoded.images[rows[0] : rows[-1] + 1]  # a split's rows are neighbours: no copy
        return Split(torch.from_numpy(images), labels)

    train, test = take("train_split"), take("test_split")
    if config.val_split is None:
        train, val = split_off(train, config.val_fraction, "dataset.val_fraction")
    else:
        val = take("val_split")
    return Splits(train, val, test, classes)
