"""ResNets from timm, with the ImageNet stem or the usual one for 32x32 images (arXiv 1512.03385)."""

from __future__ import annotations

from torch import nn

from sstune.backbones import from_timm
from sstune.backbones.registry import BACKBONES, PREPROCESSINGS, Backbone, Shape
from sstune.backbones.variant import chosen
from sstune.preprocessing import Preprocessing
from sstune.schema import ConvNetConfig, Variant

NAMES = ("resnet18", "resnet34", "resnet50")


@PREPROCESSINGS.register(*NAMES)
def preprocessing(config: ConvNetConfig) -> Preprocessing:
    """Preprocessing of timm's default weights."""
    return from_timm.preprocessing(config.name)


@BACKBONES.register(*NAMES)
def resnet(config: ConvNetConfig, shape: Shape, outputs: int, load: bool = False) -> Backbone:
    """timm's resnet18, 34 and 50; variant cifar has a 3x3 stem of stride 1 and no max-pooling.

    Raises:
        RequestError: the weights are not cached and could not be downloaded.
    """
    module = from_timm.create(config.name, shape, outputs, load)
    notes = from_timm.adaptations(config.name, shape[0], outputs) if load else []
    variant = chosen(config, shape)
    if variant is Variant.cifar:
        module.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(module.conv1.weight, mode="fan_out", nonlinearity="relu")
        module.maxpool = nn.Identity()
        if load:
            notes = [note for note in notes if not note.startswith("stem")]
            notes.append("stem: new, the first convolution of variant cifar")
    return Backbone(module, head="fc", stem="conv1", notes=tuple(notes), settled={"variant": variant})
