"""Augmentation of training images: random crops, horizontal flips, torchvision's transforms, cutout.

Random numbers are drawn on the CPU for a whole batch and applied separately. So they depend neither on the
device nor on the number of processes that share the batch.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sstune.copying import to_device
from sstune.schema import DatasetConfig, RequestError, nearest

ASPECT_RATIOS = 3 / 4, 4 / 3  # of random crops, as in torchvision's RandomResizedCrop
_ATTEMPTS = 10  # to draw a box within the image, as RandomResizedCrop


@dataclass(frozen=True)
class Draws:
    """Random numbers for the images of a batch, one row each; None where an augmentation is not used.

    Offsets ``top`` and ``left`` int64 [B, 1], ``mirrored`` bool [B, 1], ``boxes`` int64 [B, 4], ``seeds``
    int64 [B], ``centres`` (row, column) int64 [B, 2].
    """

    top: Tensor | None = None
    left: Tensor | None = None
    mirrored: Tensor | None = None
    boxes: Tensor | None = None
    seeds: Tensor | None = None
    centres: Tensor | None = None

    def part(self, chosen: slice) -> Draws:
        """The numbers of some of the images."""
        return Draws(**{name: None if rows is None else rows[chosen] for name, rows in vars(self).items()})


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of training images, in this order; images keep their shape.

    Args:
        crop_padding: random crop after padding with this many zeros on each side.
        flip: flip horizontally with probability 1/2.
        crop_scale: random resized crop (bilinear) of at least this share of the area.
        transforms: torchvision.transforms.v2 by name, with keyword arguments.
        cutout: set a square of this side, in pixels, to 0. Its centre is uniform in the image, so that part
            of it may lie outside (DeVries and Taylor, arXiv:1708.04552).
    """

    crop_padding: int = 0
    flip: bool = False
    crop_scale: float | None = None
    transforms: Mapping[str, Any] = field(default_factory=dict)
    cutout: int = 0

    @classmethod
    def of(cls, config: DatasetConfig) -> Augmentation:
        """The augmentation in the configuration of a dataset."""
        return cls(**{item.name: getattr(config, item.name) for item in fields(cls)})

    def __bool__(self) -> bool:
        """Whether any augmentation is used."""
        return bool(
            self.crop_padding or self.flip or self.crop_scale is not None or self.transforms or self.cutout
        )

    def draw(self, n: int, height: int, width: int, noise: torch.Generator) -> Draws:
        """Numbers for ``n`` images, from a generator on the CPU.

        Crops and flips are drawn first: committed results depend on this order.
        """
        top, left = torch.randint(2 * self.crop_padding + 1, (2, n, 1), generator=noise)
        return Draws(
            top,
            left,
            torch.rand(n, 1, generator=noise) < 0.5 if self.flip else None,
            random_boxes(n, height, width, self.crop_scale, noise) if self.crop_scale is not None else None,
            torch.randint(2**62, (n,), generator=noise) if self.transforms else None,
            torch.stack([torch.randint(side, (n,), generator=noise) for side in (height, width)], 1)
            if self.cutout
            else None,
        )

    def __call__(self, images: Tensor, drawn: Draws) -> Tensor:
        """Apply the numbers in ``drawn`` to images, uint8 [B, C, H, W], on any device."""
        if self.crop_padding or self.flip:
            images = _cropped(images, self.crop_padding, drawn)
        if drawn.boxes is not None:
            images = _resized_crops(images, drawn.boxes)
        if drawn.seeds is not None and len(images):
            images = self._transformed(images, drawn.seeds)
        if drawn.centres is not None:
            images = _cut_out(images, drawn.centres, self.cutout)
        return images

    def _transformed(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Transform each image alone, since a call draws one set of parameters; on the CPU's generator."""
        changed = []
        with torch.random.fork_rng(devices=[]):
            for image, seed in zip(images.cpu(), seeds.tolist(), strict=True):
                torch.default_generator.manual_seed(seed)
                changed.append(self._pipeline(image))
        return to_device(torch.stack(changed), images.device)

    @cached_property
    def _pipeline(self) -> Callable[[Tensor], Tensor]:
        return build_transforms(self.transforms)


def random_boxes(n: int, height: int, width: int, scale: float, noise: torch.Generator) -> Tensor:
    """Boxes (top, left, height, width), int64 [n, 4], within an image, as RandomResizedCrop draws them.

    The share of the area is uniform in [``scale``, 1], the aspect ratio log-uniform in ``ASPECT_RATIOS``, the
    position uniform. If ten attempts do not fit, the box is the largest central one of an allowed ratio.
    """
    low, high = ASPECT_RATIOS
    share, ratio, down, across = torch.rand(4, n, _ATTEMPTS, generator=noise, dtype=torch.float64)
    area = height * width * (scale + (1 - scale) * share)
    ratio = torch.exp(math.log(low) + (math.log(high) - math.log(low)) * ratio)
    widths, heights = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    tops = (down * (height - heights + 1)).floor().long()
    lefts = (across * (width - widths + 1)).floor().long()
    first = fits.long().argmax(1, keepdim=True)
    boxes = torch.stack([part.gather(1, first)[:, 0] for part in (tops, lefts, heights, widths)], 1)

    central_width, central_height = min(width, round(height * high)), min(height, round(width / low))
    top, left = (height - central_height) // 2, (width - central_width) // 2
    central = torch.tensor([top, left, central_height, central_width])
    return torch.where(fits.any(1, keepdim=True), boxes, central)


def _cropped(images: Tensor, padding: int, drawn: Draws) -> Tensor:
    """Crop each image at its own offset after zero padding, flipped where drawn."""
    assert drawn.top is not None
    assert drawn.left is not None
    n, _, height, width = images.shape
    rows, columns = drawn.top + torch.arange(height), drawn.left + torch.arange(width)
    if drawn.mirrored is not None:
        columns = torch.where(drawn.mirrored, columns.flip(1), columns)
    rows, columns = to_device(rows, images.device), to_device(columns, images.device)
    padded = F.pad(images, [padding] * 4)
    each = torch.arange(n, device=images.device)
    pixels = padded[each[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # [B, H, W, C]
    return pixels.permute(0, 3, 1, 2)


def _resized_crops(images: Tensor, boxes: Tensor) -> Tensor:
    """Resize each image's box to the image's size; pixels outside the box have no influence."""
    _, _, height, width = images.shape
    tops, lefts, heights, widths = boxes.unbind(1)
    y, x = _sampled(tops, heights, height), _sampled(lefts, widths, width)
    x, y = x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)
    grid = to_device(torch.stack([x, y], dim=-1).float(), images.device)
    enlarged = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=True)
    return enlarged.round_().to(images.dtype)


def _sampled(starts: Tensor, lengths: Tensor, size: int) -> Tensor:
    """Coordinates of ``size`` samples of each interval, in grid_sample's units with aligned corners."""
    steps = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    inside = (steps * lengths[:, None] - 0.5).clamp(min=0).minimum(lengths[:, None] - 1.0)
    return (starts[:, None] + inside) * (2 / max(size - 1, 1)) - 1


def _cut_out(images: Tensor, centres: Tensor, size: int) -> Tensor:
    """Set a square of side ``size`` around each centre to 0, clipped to the image."""
    kept = []
    for side, centre in zip(images.shape[2:], centres.unbind(1), strict=True):
        first = centre[:, None] - size // 2
        at = torch.arange(side)
        kept.append(to_device((at < first) | (at >= first + size), images.device))
    rows, columns = kept
    return images * (rows[:, None, :, None] | columns[:, None, None, :])


def build_transforms(wanted: Mapping[str, Any]) -> Callable[[Tensor], Tensor]:
    """Compose transforms of torchvision.transforms.v2, given by name.

    Raises:
        RequestError: a name or argument is unknown (with the nearest spelling), or a value is invalid.
    """
    from torchvision.transforms import v2  # slow to import and rarely needed

    known = {
        name: kind
        for name, kind in vars(v2).items()
        if inspect.isclass(kind) and issubclass(kind, v2.Transform)
    }
    steps = []
    for name, arguments in wanted.items():
        if name not in known:
            raise RequestError(f"dataset.transforms: unknown {name!r}, {nearest(name, known)}")
        arguments = {} if arguments is None else arguments
        if not isinstance(arguments, Mapping):
            raise RequestError(f"dataset.transforms: {name} needs arguments by name, such as {{p: 0.5}}")
        accepted = inspect.signature(known[name]).parameters
        for argument in arguments:
            if argument not in accepted:
                raise RequestError(
                    f"dataset.transforms: {name} has no argument {argument!r}, {nearest(argument, accepted)}"
                )
        try:
            steps.append(known[name](**arguments))
        except Exception as error:  # transforms raise errors of many types
            raise RequestError(f"dataset.transforms: {name}: {' '.join(str(error).split())}") from error
    return v2.Compose(steps)


def check_transforms(wanted: Mapping[str, Any], shape: tuple[int, int, int]) -> None:
    """Apply the transforms to one black image of ``shape`` (channels, height, width).

    Raises:
        RequestError: see :func:`build_transforms`; or a transform fails, or changes the shape or dtype.
    """
    if not wanted:
        return
    images = torch.zeros(1, *shape, dtype=torch.uint8)
    try:
        changed = Augmentation(transforms=wanted)(images, Draws(seeds=torch.zeros(1, dtype=torch.int64)))
    except RequestError:
        raise
    except Exception as error:
        raise RequestError(f"dataset.transforms: {' '.join(str(error).split())}") from error
    if changed.shape != images.shape or changed.dtype != images.dtype:
        found = f"{changed.dtype} {[*changed.shape[1:]]}"
        raise RequestError(f"dataset.transforms: must return uint8 {[*shape]} images, got {found}")
