"""Single image files, brought to the form of a dataset's images."""

from __future__ import annotations

import errno
import stat
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sstune.datasets.contents import MAX_FILE_BYTES
from sstune.datasets.decoding import View, open_image, pixels
from sstune.datasets.files import ImageFiles
from sstune.datasets.splits import Split
from sstune.schema import DatasetConfig, FolderConfig, RequestError, shown
from sstune.storage import in_short, kind_of


def read_images(paths: Sequence[Path], like: Split, config: DatasetConfig) -> Tensor:
    """Image files of any size as the images of ``like``: uint8 [N, C, H, W].

    They are resized and cropped as ``config`` says for image trees, otherwise to cover the size, bilinearly,
    with a centre crop. Colours become grey, or grey becomes RGB, as the channels require.

    Raises:
        RequestError: a file cannot be read or decoded; the message begins with its path.
    """
    view = _view(like, config)
    return torch.stack([_read(path, view, like.images.shape[1]) for path in paths])


def _view(like: Split, config: DatasetConfig) -> View:
    if isinstance(like.images, ImageFiles):
        assert like.images.view is not None
        return like.images.view
    height, width = like.images.shape[2:]
    if isinstance(config, FolderConfig):
        return View((height, width), config.crop_pct, str(config.interpolation))
    return View((height, width))


def _read(path: Path, view: View, channels: int) -> Tensor:
    """uint8 [C, H, W]."""
    try:
        content = _content(path)
        image = open_image(content, rgb=channels == 3)
        view.check(image)
        seen = view.centre(image.convert("L") if channels == 1 else image)
    except MemoryError:
        raise
    except Exception as error:  # PIL's decoders raise errors of many types
        raise RequestError(f"{shown(str(path))}: cannot be read as an image ({in_short(error)})") from error
    return torch.from_numpy(pixels(seen).transpose(2, 0, 1).copy())


def _content(path: Path) -> bytes:
    """Raises OSError if it is not a file, and ValueError if it is too large for an image."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # reading a FIFO or a device might never end
        raise OSError(errno.EINVAL, f"is a {kind_of(status)}")
    if status.st_size > MAX_FILE_BYTES:
        raise ValueError(f"has {status.st_size:,} bytes; at most {MAX_FILE_BYTES:,} are allowed")
    return path.read_bytes()
