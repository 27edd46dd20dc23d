"""Streamed images: a list of image files that worker processes read and decode."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sstune.datasets.augmentation import Augmentation, random_boxes
from sstune.datasets.decoding import View, open_image, pixels
from sstune.schema import RequestError, shown
from sstune.seeding import seed_from

_AHEAD = 2  # prefetched batches of each worker process
_CHECKED_AT_A_TIME = 1024


def default_workers() -> int:
    """Number of reading processes: all cores but one, divided among this machine's training processes."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun
    return max(1, len(os.sched_getaffinity(0)) // processes - 1)


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """A list of RGB image files that stands for a tensor uint8 [N, 3, H, W]; indexing returns a sublist.

    Args:
        root: directory that the names are relative to.
        names: [N], encoded paths; an array, whose memory worker processes share.
        sizes: [N], in bytes.
        modified: [N], times of modification, in ns since the epoch; a file that has changed is an error.
        view: how each image is resized and cropped; None until the dataset or the backbone sets it.
        workers: number of reading processes; 0: read in this process.
    """

    root: Path
    names: npt.NDArray[np.bytes_]
    sizes: npt.NDArray[np.int64]
    modified: npt.NDArray[np.int64]
    view: View | None
    workers: int

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, 3, H, W)."""
        assert self.view is not None
        return len(self), 3, *self.view.size

    def __getitem__(self, index: slice | Tensor) -> ImageFiles:
        chosen = index if isinstance(index, slice) else index.cpu().numpy()
        return replace(
            self, names=self.names[chosen], sizes=self.sizes[chosen], modified=self.modified[chosen]
        )

    @classmethod
    def joined(cls, parts: Sequence[ImageFiles]) -> ImageFiles:
        """The files of all parts, which share directory and view."""
        first, *others = parts
        assert all((part.root, part.view) == (first.root, first.view) for part in others)
        return replace(
            first,
            names=np.concatenate([part.names for part in parts]),
            sizes=np.concatenate([part.sizes for part in parts]),
            modified=np.concatenate([part.modified for part in parts]),
        )

    def digest(self, labels: Tensor) -> str:
        """sha256 (hex) of relative paths, sizes and labels, in order; reads no file."""
        digest = hashlib.sha256(b"files")
        for name, size, label in zip(self.names, self.sizes, labels.cpu().numpy(), strict=True):
            annotation = b"%d" % label if labels.ndim == 1 else label.astype(bool).tobytes()
            digest.update(b"%b\0%d\0%b\0" % (bytes(name), size, annotation))
        return digest.hexdigest()

    def open(self, position: int) -> Image.Image:
        """Decode an image, without resizing.

        Raises:
            RequestError: it cannot be read or decoded, or has changed since it was listed.
        """
        name = os.fsdecode(bytes(self.names[position]))
        where = f"{shown(name)} in {self.root}"
        try:
            with (self.root / name).open("rb") as file:
                status = os.fstat(file.fileno())
                content = file.read(int(self.sizes[position]) + 1)
            same = (status.st_size, status.st_mtime_ns) == (self.sizes[position], self.modified[position])
            if same:
                image = open_image(content, rgb=True)
                if self.view is not None:
                    self.view.check(image)
                return image
        except Exception as error:  # PIL's decoders raise errors of many types
            raise RequestError(
                f"dataset.root: cannot decode {where}: {error}; dataset.skip_corrupt=true skips such images"
            ) from error
        raise RequestError(
            f"dataset.root: {where} changed while this process was running; run the command again"
        )

    def corrupt(self) -> dict[str, str]:
        """Read every image, in threads; return name -> error of those that cannot be decoded."""

        def error_of(position: int) -> str | None:
            try:
                self.open(position)
            except RequestError as error:
                return str(error.__cause__)
            return None

        found: dict[str, str] = {}
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(self), _CHECKED_AT_A_TIME):
                part = range(start, min(start + _CHECKED_AT_A_TIME, len(self)))
                for position, error in zip(part, pool.map(error_of, part), strict=True):
                    if error is not None:
                        found[os.fsdecode(bytes(self.names[position]))] = error
        return found


@dataclass(frozen=True)
class EpochAugmentation:
    """Augmentation of single images in one epoch, seeded by (seed, epoch, position).

    So it does not depend on batch size, worker processes, or where an epoch was resumed.
    """

    augmentation: Augmentation
    seed: int
    epoch: int

    def __call__(self, image: Image.Image, view: View, position: int) -> Tensor:
        """uint8 [3, H, W]; a random resized crop is taken from the original image, at full resolution."""
        noise = torch.Generator().manual_seed(seed_from(self.seed, "augmentation", self.epoch, position))
        scale = self.augmentation.crop_scale
        if scale is None:
            seen = view.centre(image)
        else:
            box = random_boxes(1, image.height, image.width, scale, noise)[0].tolist()
            seen = view.crop(image, tuple(box))
        rest = replace(self.augmentation, crop_scale=None)
        return rest(_tensor(seen)[None], rest.draw(1, *view.size, noise))[0]


class _Reader(Dataset[Tensor | RequestError]):
    """Decodes by position. Errors are returned: one raised in a worker would arrive as a traceback."""

    def __init__(self, files: ImageFiles, augment: EpochAugmentation | None) -> None:
        self.files = files
        self.augment = augment

    def __getitem__(self, position: int) -> Tensor | RequestError:
        view = self.files.view
        assert view is not None
        try:
            image = self.files.open(position)
        except RequestError as error:
            return RequestError(str(error))  # without its cause, which may not be picklable
        return self.augment(image, view, position) if self.augment else _tensor(view.centre(image))


def stream(
    files: ImageFiles,
    batches: Sequence[Tensor],
    device: torch.device | str,
    augment: EpochAugmentation | None = None,
) -> Iterator[Tensor]:
    """Read batches of images in worker processes, ahead of use.

    Args:
        batches: positions in ``files``, int64 [B] each, on the CPU.
        augment: of training images; None: images as in evaluation.

    Yields:
        uint8 [B, 3, H, W] on ``device``, in the batches' order.

    Raises:
        RequestError: an image cannot be read or decoded.
    """
    workers = min(files.workers, len(batches))
    loader: DataLoader[Tensor | RequestError] = DataLoader(
        _Reader(files, augment),
        batch_sampler=[batch.tolist() for batch in batches],
        num_workers=workers,
        prefetch_factor=_AHEAD if workers else None,
        collate_fn=_batch,
        pin_memory=torch.device(device).type == "cuda",
        generator=torch.Generator(),  # otherwise DataLoader uses the global generator
    )
    for images in loader:
        if isinstance(images, RequestError):
            raise images
        yield images.to(device, non_blocking=True)


def _batch(images: list[Tensor | RequestError]) -> Tensor | RequestError:
    errors = (image for image in images if isinstance(image, RequestError))
    return next(errors, None) or torch.stack(images)  # type: ignore[arg-type]


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(pixels(image).transpose(2, 0, 1).copy())
