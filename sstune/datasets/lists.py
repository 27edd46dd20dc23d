"""Datasets given by list files, as for NUS-WIDE-21 or MS-COCO: a path and labels in each line."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from sstune.datasets.archive import list_files, scanned
from sstune.datasets.contents import Scan, is_image
from sstune.datasets.decoding import View
from sstune.datasets.files import ImageFiles, default_workers
from sstune.datasets.folder import known_corrupt
from sstune.datasets.sources import SOURCES
from sstune.datasets.splits import Split, Splits
from sstune.schema import ListConfig, RequestError, shown

Labels = npt.NDArray[np.uint8]  # [L], 0 or 1

# Pairs of files that share no image, and why.
_APART = {
    ("database", "test"): "a query must not find itself",
    ("train", "test"): "a query must not be a training image",
    ("val", "test"): "a query must not be a validation image",
    ("train", "val"): "a validation image must not be a training image",
}


@dataclass(frozen=True)
class _Listed:
    """A line of a list file: its place, in words, and the labels in it."""

    place: str
    labels: Labels


@SOURCES.register("list")
def lists(config: ListConfig) -> Splits:
    """The images in the list files, streamed: database, training images, queries, validation images.

    Without a file of validation images that split is empty; :func:`sstune.datasets.load` draws it. Targets
    are int64 classes if every image has exactly one label, otherwise float32 multi-hot. The pool that
    ``Splits.indices`` refers to has each image once, in the order of its first mention in the files of
    database, training images, queries and validation images. Images without any label are allowed in the
    database only: as queries they would have no relevant image, and a loss learns nothing from them.

    Raises:
        RequestError: a file cannot be read or is empty; a line is not a path and labels, or its image is
            missing, in the file already, or in another file that must not share it; the classes are not as
            many as the labels; an image cannot be decoded.
    """
    root = Path(config.root).expanduser()
    if not root.is_dir():
        raise RequestError(f"dataset.root: {root} is not a directory")
    found = scanned(root, config.cache)
    known = set(found.names)
    files = list_files(config)
    parts: dict[str, dict[str, _Listed]] = {
        name: _read(f"dataset.{name}_file", files[name], root, known)
        for name in ("database", "train", "val", "test")
        if name in files
    }
    _check_labels(parts)
    _check_apart(parts)
    width = len(next(iter(parts["database"].values())).labels)
    classes = _classes(files.get("classes"), width)

    pool = {image: listed.labels for part in parts.values() for image, listed in part.items()}
    images, corrupt = _files(list(pool), found, root, config)
    for name, part in parts.items():
        if part.keys() <= corrupt.keys():
            raise RequestError(f"dataset.{name}_file: no image of {files[name]} can be decoded")
    kept = [image for image in pool if image not in corrupt]
    place = {image: position for position, image in enumerate(kept)}
    labels = np.stack([pool[image] for image in kept])
    single = bool((labels.sum(1) == 1).all())
    targets = torch.from_numpy(labels.argmax(1) if single else labels.astype(np.float32))
    whole = Split(images, targets)
    indices = {
        name: torch.tensor(
            [place[image] for image in parts.get(name, ()) if image in place], dtype=torch.int64
        )
        for name in ("train", "val", "test", "database")
    }
    train, val, test, database = (whole.take(index) for index in indices.values())
    return Splits(train, val, test, classes, sorted(corrupt), database=database, indices=indices)


def _read(key: str, file: Path, root: Path, known: set[str]) -> dict[str, _Listed]:
    """The lines of a list file, by the image's path relative to ``root``."""
    found: dict[str, _Listed] = {}
    width = None
    for number, line in _lines(key, file):
        place = f"line {number} of {file.name}"
        written, *values = line.split()
        image = _relative(written, root)
        if problem := _image_problem(written, image, root, known):
            raise RequestError(f"{key}: {place}: {problem}")
        if image in found:
            raise RequestError(f"{key}: {place}: {shown(image)} is already in {found[image].place}")
        if wrong := next((value for value in values if value not in ("0", "1")), None):
            raise RequestError(f"{key}: {place}: the label {shown(wrong)!r} is not 0 or 1")
        width = len(values) if width is None else width
        if not values or len(values) != width:
            expected = f"expected {width}" if width else "expected 0 or 1 for each class after the path"
            raise RequestError(f"{key}: {place}: {len(values)} labels, {expected}")
        found[image] = _Listed(place, np.frombuffer("".join(values).encode(), np.uint8) - ord("0"))
    if not found:
        raise RequestError(f"{key}: {file} is empty, expected lines of a path and labels")
    return found


def _lines(key: str, file: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, with their numbers from 1."""
    try:
        text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise RequestError(f"{key}: cannot read {file}: {error.strerror or error}") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


def _relative(written: str, root: Path) -> str:
    """A path as listed, relative to ``root``; unchanged if it is absolute and not below it."""
    for directory in (root.absolute(), root.resolve()) if written.startswith("/") else ():
        if Path(posixpath.normpath(written)).is_relative_to(directory):
            return Path(posixpath.normpath(written)).relative_to(directory).as_posix()
    return posixpath.normpath(written)


def _image_problem(written: str, image: str, root: Path, known: set[str]) -> str | None:
    """Why an image cannot be used, or None."""
    if image in known:
        return None
    if image.startswith(("/", "../")):
        return f"{shown(written)} is not below {root}"
    if not is_image(image):
        return f"{shown(written)} has no suffix of an image"
    return f"{shown(image)} is missing in {root}"


def _check_labels(parts: Mapping[str, Mapping[str, _Listed]]) -> None:
    """Refuse other numbers of labels, other labels of the same image, and no labels outside the database."""
    first: dict[str, _Listed] = {}
    width = len(next(iter(parts["database"].values())).labels)
    for name, part in parts.items():
        for image, listed in part.items():
            before = first.setdefault(image, listed)
            if len(listed.labels) != width:
                problem = f"{len(listed.labels)} labels, expected {width} as in the database"
            elif name != "database" and not listed.labels.any():
                problem = f"{shown(image)} has no label; such images are allowed in the database only"
            elif not np.array_equal(before.labels, listed.labels):
                problem = f"{shown(image)} has other labels in {before.place}"
            else:
                continue
            raise RequestError(f"dataset.{name}_file: {listed.place}: {problem}")


def _check_apart(parts: Mapping[str, Mapping[str, _Listed]]) -> None:
    for (one, other), why in _APART.items():
        for image, listed in parts.get(other, {}).items():
            if image in parts.get(one, {}):
                where = parts[one][image].place
                raise RequestError(
                    f"dataset.{other}_file: {listed.place}: {shown(image)} is also in {where}; {why}"
                )


def _classes(file: Path | None, width: int) -> list[str]:
    """Names of the classes, one in each line of ``file``; without it their numbers."""
    if file is None:
        return [str(number) for number in range(width)]
    names = [shown(line.strip()) for _, line in _lines("dataset.classes_file", file)]
    if len(names) != width:
        raise RequestError(f"dataset.classes_file: {file} has {len(names)} names, expected {width}")
    return names


def _files(
    names: list[str], found: Scan, root: Path, config: ListConfig
) -> tuple[ImageFiles, dict[str, str]]:
    """The image files of these names without the corrupt ones, and file -> error of those."""
    row_of = {name: row for row, name in enumerate(found.names)}
    sizes, modified = found.stamps[[row_of[name] for name in names], :2].T
    size = config.image_size
    view = None if size is None else View((size, size), config.crop_pct, str(config.interpolation))
    encoded = np.array([os.fsencode(name) for name in names])
    files = ImageFiles(root, encoded, sizes, modified, view, default_workers())
    if not config.skip_corrupt:
        return files, {}
    corrupt = known_corrupt(files, found.content, config.cache)
    kept = torch.tensor([i for i, name in enumerate(names) if name not in corrupt], dtype=torch.int64)
    return files[kept], corrupt
