"""VGG-16 (arXiv 1409.1556) in torchvision's form, without and with batch normalisation.

Both variants have torchvision's module names ``features``, ``avgpool`` and ``classifier``.
"""

from __future__ import annotations

from torch import Tensor, nn

from sstune.backbones import from_torchvision
from sstune.backbones.registry import BACKBONES, PREPROCESSINGS, Backbone, Shape
from sstune.backbones.variant import chosen, require
from sstune.preprocessing import Preprocessing
from sstune.schema import ConvNetConfig, Variant

NAMES = ("vgg16", "vgg16_bn")
SMALLEST = 32  # pixels a side, which five poolings reduce to one


class CifarVGG(nn.Module):
    """torchvision's features, global average pooling and one linear layer; initialised as its VGG."""

    def __init__(self, features: nn.Sequential, outputs: int) -> None:
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(512, outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


@PREPROCESSINGS.register(*NAMES)
def preprocessing(config: ConvNetConfig) -> Preprocessing:
    """Preprocessing of torchvision's default weights."""
    return from_torchvision.preprocessing(config.name)


@BACKBONES.register(*NAMES)
def vgg(config: ConvNetConfig, shape: Shape, outputs: int, load: bool = False) -> Backbone:
    """vgg16 and vgg16_bn; variant cifar loads published weights except for the head.

    Raises:
        RequestError: the images are too small, or the weights are not cached and could not be downloaded.
    """
    from torchvision.models.vgg import VGG, cfgs, make_layers  # slow to import

    require(config, shape, SMALLEST)
    features = make_layers(cfgs["D"], batch_norm=config.name == "vgg16_bn")
    if shape[0] != 3:
        features[0] = nn.Conv2d(shape[0], 64, 3, padding=1)
    module: nn.Module
    variant = chosen(config, shape)
    if variant is not Variant.imagenet:  # its convolutions are those for ImageNet
        module, head = CifarVGG(features, outputs), "classifier"
    else:
        module, head = VGG(features, outputs), "classifier.6"
    notes = from_torchvision.load(module, config.name, "features.0", (head,)) if load else []
    return Backbone(module, head, stem="features.0", notes=tuple(notes), settled={"variant": variant})
