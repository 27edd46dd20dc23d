"""AlexNet in torchvision's form, one tower (Krizhevsky 2014, arXiv 1404.5997), and one for small images.

Both have torchvision's module names ``features``, ``avgpool`` and ``classifier``.
"""

from __future__ import annotations

from torch import Tensor, nn

from sstune.backbones import from_torchvision
from sstune.backbones.registry import BACKBONES, PREPROCESSINGS, Backbone, Shape
from sstune.backbones.variant import chosen, require
from sstune.preprocessing import Preprocessing
from sstune.schema import BackboneConfig, ConvNetConfig, RequestError, Variant

SMALLEST_CIFAR = 17  # pixels a side, which stem and three poolings reduce to 2x2


class CifarAlexNet(nn.Module):
    """AlexNet for small images: 3x3 stem of stride 2, padded poolings, 2x2 features, 1024 hidden units.

    Modules have torchvision's order, and all convolutions but the first its shapes, so that weights of equal
    shape have equal names.
    """

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 64, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Linear(256 * 2 * 2, 1024),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(1024, 1024),
            nn.ReLU(inplace=True),
            nn.Linear(1024, outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


class AlexNetFeatures(nn.Module):
    """torchvision's convolutions for ImageNet, average pooling to 2x2, and one linear layer."""

    def __init__(self, features: nn.Module, outputs: int) -> None:
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Linear(256 * 2 * 2, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


@PREPROCESSINGS.register("alexnet")
def preprocessing(config: ConvNetConfig) -> Preprocessing:
    """Preprocessing of torchvision's default weights."""
    return from_torchvision.preprocessing(config.name)


class NormalisedAlexNet(nn.Module):
    """torchvision's AlexNet with batch normalisation before every ReLU and no dropout.

    As Xiao et al. (arXiv 1811.03567) trained it by sign-symmetry. Normalised layers have no bias.
    """

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_normalised(nn.Conv2d(channels, 64, 11, stride=4, padding=2, bias=False)),
            nn.MaxPool2d(3, stride=2),
            *_normalised(nn.Conv2d(64, 192, 5, padding=2, bias=False)),
            nn.MaxPool2d(3, stride=2),
            *_normalised(nn.Conv2d(192, 384, 3, padding=1, bias=False)),
            *_normalised(nn.Conv2d(384, 256, 3, padding=1, bias=False)),
            *_normalised(nn.Conv2d(256, 256, 3, padding=1, bias=False)),
            nn.MaxPool2d(3, stride=2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(
            *_normalised(nn.Linear(256 * 6 * 6, 4096, bias=False)),
            *_normalised(nn.Linear(4096, 4096, bias=False)),
            nn.Linear(4096, outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def _normalised(layer: nn.Conv2d | nn.Linear) -> tuple[nn.Module, ...]:
    if isinstance(layer, nn.Conv2d):
        return layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU(inplace=True)
    return layer, nn.BatchNorm1d(layer.out_features), nn.ReLU(inplace=True)


@BACKBONES.register("alexnet_bn")
def alexnet_bn(config: BackboneConfig, shape: Shape, outputs: int) -> Backbone:
    """AlexNet with batch normalisation and random weights.

    Raises:
        RequestError: the images are too small.
    """
    smallest = from_torchvision.smallest("alexnet")
    if min(shape[1:]) < smallest:
        raise RequestError(
            f"backbone.name: alexnet_bn needs {smallest}x{smallest} images or larger, "
            f"not {shape[1]}x{shape[2]}"
        )
    return Backbone(NormalisedAlexNet(shape[0], outputs), head="classifier.6", stem="features.0")


@BACKBONES.register("alexnet")
def alexnet(config: ConvNetConfig, shape: Shape, outputs: int, load: bool = False) -> Backbone:
    """AlexNet; variant cifar loads published weights except for stem and classifier.

    Raises:
        RequestError: the images are too small, or the weights are not cached and could not be downloaded.
    """
    head, new = "classifier.6", ["classifier.6"]
    module: nn.Module
    variant = chosen(config, shape)
    if variant is Variant.cifar:
        require(config, shape, SMALLEST_CIFAR)
        module = CifarAlexNet(shape[0], outputs)
        new = ["features.0", "classifier.1", "classifier.4", head]
    else:
        from torchvision.models import AlexNet  # slow to import, only used here

        require(config, shape, from_torchvision.smallest(config.name))
        module = AlexNet(outputs)
        if shape[0] != 3:
            module.set_submodule("features.0", nn.Conv2d(shape[0], 64, 11, stride=4, padding=2))
        if variant is Variant.features:
            module, head, new = (
                AlexNetFeatures(module.get_submodule("features"), outputs),
                "classifier",
                ["classifier"],
            )
    notes = from_torchvision.load(module, config.name, "features.0", tuple(new)) if load else []
    return Backbone(module, head, stem="features.0", notes=tuple(notes), settled={"variant": variant})
