"""Vision transformers from timm, with the patch size fitted to small images."""

from __future__ import annotations

from sstune.backbones.registry import BACKBONES, Backbone, Shape
from sstune.schema import RequestError, VitConfig


@BACKBONES.register("vit_tiny")
def vit_tiny(config: VitConfig, shape: Shape, outputs: int) -> Backbone:
    """timm's ViT of width 192, depth 12 and 3 heads, from random weights.

    Raises:
        RequestError: the patches do not tile the image.
    """
    import timm  # takes seconds, and the other backbones do without

    channels, height, width = shape
    patch_size = config.patch_size or 4
    if height % patch_size or width % patch_size:
        raise RequestError(f"backbone.patch_size: {patch_size} does not divide {height}x{width} pixels")
    module = timm.create_model(
        "vit_tiny_patch16_224",
        pretrained=False,
        img_size=(height, width),
        patch_size=patch_size,
        in_chans=channels,
        num_classes=outputs,
    )
    return Backbone(module, head="head", stem="patch_embed.proj")
