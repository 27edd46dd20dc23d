"""Datasets in a tree ``<split>/<class>/<image>``: a directory or archive, in memory or streamed."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from sstune.datasets import cache
from sstune.datasets.archive import digest, has_split_and_class, read, scanned, tree_layout
from sstune.datasets.cache import Decoded
from sstune.datasets.decoding import Pixels, View, open_image, pixels
from sstune.datasets.files import ImageFiles, default_workers
from sstune.datasets.splits import Images, Split, Splits, split_off
from sstune.schema import FolderConfig, RequestError, shown

TreeLayout = dict[str, str]
"""Split and class of the files in a directory: path -> ``<split>/<class>/<image>``."""

MAX_BYTES = 4 * 2**30  # decoded images are held in memory as one array
_SMALL_FILE = 16 * 2**10  # bytes; smaller files are decoded faster than they are handed to another thread
_IN_FLIGHT = 64  # larger files decoded at a time; bounds their memory
_SKIP = "dataset.skip_corrupt=true skips such images"


def load_folder(config: FolderConfig, root: Path | None = None, layout: TreeLayout | None = None) -> Splits:
    """Load a folder dataset: decode it or read it from the cache, or list its files if it is streamed.

    Classes are the sorted folder names of the train split; images are sorted by (class, file name). Images
    in memory have one channel if all of them are grey, otherwise three; streamed images have three.

    Args:
        root: directory or archive of the images; default: ``config.root``.
        layout: for a directory that is not laid out as ``<split>/<class>/<image>``.

    Raises:
        RequestError: files cannot be read or decoded, images differ in size and ``image_size`` is not set,
            they exceed ``MAX_BYTES``, a split is absent or used twice, a class is absent from the train
            split, or an archive is to be streamed.
    """
    root = Path(config.root).expanduser() if root is None else root
    images, paths, corrupt = (_listed if config.stream else _decoded)(config, root, layout)
    if corrupt and not config.skip_corrupt:
        name, error = next(iter(corrupt.items()))
        raise RequestError(f"dataset.root: cannot decode {shown(name)} in {root}: {error}; {_SKIP}")
    return _arrange(images, paths, config, sorted(corrupt))


# Images, their ``<split>/<class>/<image>``, and corrupt file -> error.
Found = tuple[Images, list[str], dict[str, str]]


def _decoded(config: FolderConfig, root: Path, layout: TreeLayout | None) -> Found:
    details: tuple[object, ...] = (config.image_size,)
    if (config.crop_pct, config.interpolation) != (1.0, "bilinear"):
        details += (config.crop_pct, str(config.interpolation))
    if layout is not None:
        details += (hashlib.sha256(json.dumps(layout, sort_keys=True).encode()).hexdigest(),)
    content = digest(root, config.cache)
    path = cache.cache_file(config.cache, "images", content, *details)
    decoded = cache.load(path)
    if decoded is None:
        decoded = decode(root, _view(config), config.skip_corrupt, layout)
        if root.is_dir():  # cache only images whose digest is known
            scanned(root, config.cache).check_unchanged()
        elif digest(root, config.cache) != content:
            raise RequestError(f"dataset.root: {root} changed while it was read; run the command again")
        cache.save(path, decoded)
    return torch.from_numpy(decoded.images), decoded.paths, decoded.corrupt


def _listed(config: FolderConfig, root: Path, layout: TreeLayout | None) -> Found:
    if root.is_file():
        raise RequestError(f"dataset.stream: needs a directory, {root} is an archive: unpack it")
    found = scanned(root, config.cache)
    layout = tree_layout(found.names) if layout is None else layout
    names = sorted(layout, key=lambda name: layout[name].split("/"))
    row_of = {name: row for row, name in enumerate(found.names)}
    if not names:
        raise RequestError(f"dataset.root: no image <split>/<class>/<image> in {root}")
    _refuse_absent([name for name in names if name not in row_of], root)
    sizes, modified = found.stamps[[row_of[name] for name in names], :2].T
    encoded = np.array([name.encode(errors="surrogateescape") for name in names])
    files = ImageFiles(root, encoded, sizes, modified, _view(config), default_workers())
    if not config.skip_corrupt:
        return files, [layout[name] for name in names], {}

    corrupt = known_corrupt(files, found.content, config.cache)
    kept = torch.tensor(
        [position for position, name in enumerate(names) if name not in corrupt], dtype=torch.int64
    )
    if not len(kept):
        raise RequestError(f"dataset.root: no image of {root} can be decoded")
    return files[kept], [layout[name] for name in names if name not in corrupt], corrupt


def known_corrupt(files: ImageFiles, content: str, kept_in: str) -> dict[str, str]:
    """Name -> error of the files that cannot be decoded, from the cache; the first time all files are read.

    Args:
        content: digest of the directory; the cache is used as long as it stays the same.
        kept_in: directory of the cache.
    """
    path = cache.cache_file(kept_in, "corrupt", content, hashlib.sha256(b"\0".join(files.names)).hexdigest())
    corrupt = cache.load_corrupt(path)
    if corrupt is None:
        print(f"  checking {len(files):,} images of {files.root} for damage, once", flush=True)
        corrupt = files.corrupt()
        cache.save_corrupt(path, corrupt)
    return corrupt


def _view(config: FolderConfig) -> View | None:
    if config.image_size is None:
        return None
    return View((config.image_size, config.image_size), config.crop_pct, str(config.interpolation))


def decode(
    root: Path, view: View | None, skip_corrupt: bool = False, layout: TreeLayout | None = None
) -> Decoded:
    """Decode every image below ``root``, of whichever split, in sorted order.

    Args:
        view: how images are resized; None: not at all.
        skip_corrupt: skip and list images that cannot be decoded, instead of raising.
        layout: see :func:`load_folder`.

    Raises:
        RequestError: see :func:`load_folder`.
    """
    wanted = has_split_and_class if layout is None else layout.__contains__
    found: dict[str, Pixels] = {}
    corrupt: dict[str, str] = {}
    area, channels = 0, 1
    for name, image in _decoded_files(root, view, wanted):
        if name in found or name in corrupt:
            raise RequestError(f"dataset.root: {shown(name)} appears twice in {root}")
        if isinstance(image, Exception):
            if not skip_corrupt:
                raise RequestError(
                    f"dataset.root: cannot decode {shown(name)} in {root}: {image}; {_SKIP}"
                ) from image
            corrupt[name] = str(image)
            continue
        found[name] = image
        area += image.shape[0] * image.shape[1]
        channels = max(channels, image.shape[2])
        if area * channels > MAX_BYTES:
            raise RequestError(
                f"dataset.root: the images of {root} need more than {MAX_BYTES / 2**30:g} GiB of memory;"
                " set a smaller dataset.image_size, or dataset.stream=true"
            )
    _refuse_absent(sorted((layout or {}).keys() - found.keys() - corrupt.keys()), root)
    layout = tree_layout([*found, *corrupt]) if layout is None else layout
    ordered = sorted(
        ((name, layout[name]) for name in found if name in layout), key=lambda at: at[1].split("/")
    )
    if not ordered:
        raise RequestError(f"dataset.root: no image <split>/<class>/<image> in {root}")
    height, width = _common_size([(name, found[name]) for name, _ in ordered], root)
    images = np.empty((len(ordered), channels, height, width), np.uint8)
    for row, (name, _) in enumerate(ordered):  # popped, so that all images are never held twice
        images[row] = found.pop(name).transpose(2, 0, 1)
    return Decoded(images, [path for _, path in ordered], corrupt)


def _refuse_absent(names: list[str], root: Path) -> None:
    if names:
        raise RequestError(
            f"dataset.root: {len(names)} images are missing in {root}, the first is {shown(names[0])}"
        )


def _common_size(images: list[tuple[str, Pixels]], root: Path) -> tuple[int, int]:
    first, expected = images[0][0], images[0][1].shape[:2]
    for name, image in images:
        if image.shape[:2] != expected:
            sizes = [f"{width}x{height}" for height, width in (expected, image.shape[:2])]
            raise RequestError(
                f"dataset.image_size: must be set, for the images of {root} differ in size:"
                f" {shown(first)} has {sizes[0]} pixels, {shown(name)} {sizes[1]}"
            )
    return expected[0], expected[1]


def _decoded_files(
    root: Path, view: View | None, wanted: Callable[[str], bool]
) -> Iterator[tuple[str, Pixels | Exception]]:
    """Yield names and pixels; large files are decoded ahead in threads (PIL releases the GIL)."""
    pending: deque[tuple[str, Future[Pixels | Exception]]] = deque()
    with ThreadPoolExecutor() as pool:
        for name, content in read(root, wanted):
            if len(content) < _SMALL_FILE:
                yield name, _decode_file(content, view)
                continue
            pending.append((name, pool.submit(_decode_file, content, view)))
            if len(pending) == _IN_FLIGHT:
                ready, future = pending.popleft()
                yield ready, future.result()
        for ready, future in pending:
            yield ready, future.result()


def _decode_file(content: bytes, view: View | None) -> Pixels | Exception:
    try:
        image = open_image(content)
        if view is None:
            return pixels(image)
        view.check(image)
        return pixels(view.centre(image))
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error and others
        return error


def _arrange(images: Images, paths: list[str], config: FolderConfig, skipped: list[str]) -> Splits:
    asked = {"train_split": config.train_split, "test_split": config.test_split}
    if config.val_split is not None:
        asked["val_split"] = config.val_split
    if len(set(asked.values())) < len(asked):
        names = ", ".join(f"{key}={name}" for key, name in asked.items())
        raise RequestError(f"dataset: splits must not share images, but two are the same: {names}")

    parts = [path.split("/", 2) for path in paths]
    split_of = np.array([split for split, _, _ in parts], dtype=object)
    classes = sorted({name for split, name, _ in parts if split == config.train_split})
    label_of = {name: label for label, name in enumerate(classes)}

    def take(key: str) -> Split:
        rows = np.flatnonzero(split_of == asked[key])
        if not len(rows):
            known = sorted(set(split_of))
            nearest_first = difflib.get_close_matches(asked[key], known, n=len(known), cutoff=0.0)
            where = f"not found in {config.root}; available: {', '.join(nearest_first)}"
            raise RequestError(f"dataset.{key}: {asked[key]!r} {where}")
        unknown = sorted({parts[row][1] for row in rows} - label_of.keys())
        if unknown:
            where = f"{asked[key]!r} is absent from {config.train_split!r} in {config.root}"
            raise RequestError(f"dataset.{key}: class {unknown[0]!r} of {where}")
        labels = torch.tensor([label_of[parts[row][1]] for row in rows])
        return Split(images[int(rows[0]) : int(rows[-1]) + 1], labels)  # rows are neighbours: no copy

    train, test = take("train_split"), take("test_split")
    if config.val_split is None:
        train, val = split_off(train, config.val_fraction, "dataset.val_fraction")
    else:
        val = take("val_split")
    return Splits(train, val, test, [shown(name) for name in classes], skipped)
