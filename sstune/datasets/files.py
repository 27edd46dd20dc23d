"""Images that stay in their files: a list of them that is read piece by piece, by worker processes."""

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

_AHEAD = 2  # batches that each worker process has read before they are asked for
_CHECKED_AT_A_TIME = 1024


def default_workers() -> int:
    """Reading processes: all cores but one, shared among the training processes of this machine."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # as torchrun says it
    return max(1, len(os.sched_getaffinity(0)) // processes - 1)


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """RGB image files, in the place of a tensor uint8 [N, 3, H, W]; an index gives again such a list.

    Args:
        root: directory that the names are relative to.
        names: [N], encoded paths; an array, for worker processes share its memory and would copy a list's.
        sizes: [N], of the files, in bytes.
        modified: [N], when they were, in ns since the epoch; a file that was changed since is an error.
        view: how each image is resized and cropped; None until the dataset or the backbone defines it.
        workers: processes that read; 0 reads in this one.
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
        """That of the tensor that it stands for."""
        assert self.view is not None
        return len(self), 3, *self.view.size

    def __getitem__(self, index: slice | Tensor) -> ImageFiles:
        chosen = index if isinstance(index, slice) else index.cpu().numpy()
        return replace(
            self, names=self.names[chosen], sizes=self.sizes[chosen], modified=self.modified[chosen]
        )

    def digest(self, labels: Tensor) -> str:
        """sha256 (hex) of relative paths, sizes and labels in their order; no pixel is read for it."""
        digest = hashlib.sha256(b"files")
        for name, size, label in zip(self.names, self.sizes, labels.tolist(), strict=True):
            digest.update(b"%b\0%d\0%d\0" % (bytes(name), size, label))
        return digest.hexdigest()

    def open(self, position: int) -> Image.Image:
        """The whole image, decoded.

        Raises:
            RequestError: it cannot be read or decoded, or was changed since it was listed; names it.
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
        except Exception as error:  # as many kinds as PIL has decoders
            raise RequestError(
                f"dataset.root: cannot decode {where}: {error};"
                " dataset.skip_corrupt=true leaves such images out"
            ) from error
        raise RequestError(f"dataset.root: {where} was changed while this process works; run it again")

    def corrupt(self) -> dict[str, str]:
        """Name -> error of the images that cannot be decoded, after reading every single one, in threads."""

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
class Change:
    """How images are changed in one training epoch: numbers follow from (seed, epoch, position) alone.

    So a pixel depends neither on batches nor on worker processes, nor on where an epoch was resumed.
    """

    augmentation: Augmentation
    seed: int
    epoch: int

    def __call__(self, image: Image.Image, view: View, position: int) -> Tensor:
        """uint8 [3, H, W]: cropped and resized while still a whole image, then changed like any other."""
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
    """Decodes by position; an error is an answer, for one raised in a worker arrives as a traceback."""

    def __init__(self, files: ImageFiles, change: Change | None) -> None:
        self.files = files
        self.change = change

    def __getitem__(self, position: int) -> Tensor | RequestError:
        view = self.files.view
        assert view is not None
        try:
            image = self.files.open(position)
        except RequestError as error:
            return RequestError(str(error))  # without its cause, which may not travel between processes
        return self.change(image, view, position) if self.change else _tensor(view.centre(image))


def stream(
    files: ImageFiles, batches: Sequence[Tensor], device: torch.device | str, change: Change | None = None
) -> Iterator[Tensor]:
    """Read batches of images ahead of their use, in worker processes.

    Args:
        batches: positions in ``files``, int64 [B] each, on the CPU.
        change: of training images; without one they are seen as in evaluation.

    Yields:
        uint8 [B, 3, H, W] on ``device``, in the batches' order.

    Raises:
        RequestError: an image cannot be read or decoded; names it.
    """
    workers = min(files.workers, len(batches))
    loader: DataLoader[Tensor | RequestError] = DataLoader(
        _Reader(files, change),
        batch_sampler=[batch.tolist() for batch in batches],
        num_workers=workers,
        prefetch_factor=_AHEAD if workers else None,
        collate_fn=_batch,
        pin_memory=torch.device(device).type == "cuda",
        generator=torch.Generator(),  # otherwise it draws from the global one
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
