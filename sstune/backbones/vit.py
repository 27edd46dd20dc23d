"""Vision transformers (arXiv 2010.11929) from timm, with a patch size that suits the images."""

from __future__ import annotations

from sstune.backbones import from_timm
from sstune.backbones.registry import BACKBONES, PREPROCESSINGS, Backbone, Shape
from sstune.preprocessing import Preprocessing
from sstune.schema import RequestError, VitConfig

MODELS = {"vit_tiny": "vit_tiny_patch16_224", "vit_small": "vit_small_patch16_224"}
PATCH_SIZES = (16, 8, 4, 2, 1)
FEWEST_PATCHES = 7  # a side


@PREPROCESSINGS.register(*MODELS)
def preprocessing(config: VitConfig) -> Preprocessing:
    """Preprocessing of timm's default weights."""
    return from_timm.preprocessing(MODELS[config.name])


@BACKBONES.register(*MODELS)
def vit(config: VitConfig, shape: Shape, outputs: int, load: bool = False) -> Backbone:
    """timm's ViTs of depth 12: tiny with width 192 and 3 heads, small with 384 and 6.

    Published weights are for 224-pixel images and 16-pixel patches; for others timm resamples embeddings.

    Raises:
        RequestError: the patches do not tile the image, or the weights are not cached and could not be
            downloaded.
    """
    name, pixels = MODELS[config.name], patch_size(config, shape)
    settings = {"img_size": shape[1:], "patch_size": pixels}
    module = from_timm.create(name, shape, outputs, load, **settings)
    notes = []
    if load:
        notes = from_timm.adaptations(name, shape[0], outputs)
        size = from_timm.preprocessing(name).size
        if pixels != PATCH_SIZES[0]:
            notes.append(f"stem: patch embedding resampled, {PATCH_SIZES[0]} -> {pixels} pixels a patch")
        grids = [
            f"{height // p}x{width // p}"
            for (height, width), p in ((size, PATCH_SIZES[0]), (shape[1:], pixels))
        ]
        if grids[0] != grids[1]:
            notes.append(f"position embedding resampled, {grids[0]} -> {grids[1]} patches")
    settled = {"patch_size": pixels}
    return Backbone(module, head="head", stem="patch_embed.proj", notes=tuple(notes), settled=settled)


def patch_size(config: VitConfig, shape: Shape) -> int:
    """Side of a patch, in pixels, for a backbone input of ``shape``.

    Default: 16 for a pre-trained backbone; otherwise the largest power of two up to 16 that tiles the image
    with at least 7 patches a side, e.g. 16 for 112 or 224 pixels and 4 for 28 or 32.

    Raises:
        RequestError: the patches do not tile the image.
    """
    _, height, width = shape
    pixels = config.patch_size or (PATCH_SIZES[0] if config.pretrained else _fitted(height, width))
    if height % pixels or width % pixels:
        raise RequestError(f"backbone.patch_size: {pixels} does not divide {height}x{width} pixels")
    return pixels


def _fitted(height: int, width: int) -> int:
    for pixels in PATCH_SIZES:
        if height % pixels == width % pixels == 0 and min(height, width) // pixels >= FEWEST_PATCHES:
            return pixels
    return 1
