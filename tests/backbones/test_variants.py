"""The convolutional networks as published for ImageNet, and for small images."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import get_model_weights

from sstune import backbones
from sstune.backbones.variant import chosen
from sstune.schema import ConvNetConfig, RequestError, Variant, VitConfig

EVERY = ["resnet18", "resnet34", "resnet50", "alexnet", "vgg16", "vgg16_bn"]
FROM_TORCHVISION = ["alexnet", "vgg16", "vgg16_bn"]


def build(
    name: str, size: int, channels: int = 3, outputs: int = 1000, variant: Variant = Variant.auto
) -> backbones.Network:
    config = ConvNetConfig(name, variant=variant)
    return backbones.build(config, (channels, size, size), outputs, [0.5], [0.25])


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("name", EVERY)
def test_large_images_get_the_published_network(name: str, size: int) -> None:
    """As many parameters as torchvision publishes of the same architecture."""
    with torch.device("meta"):
        network = build(name, size)
    assert parameters(network) == get_model_weights(name).DEFAULT.meta["num_params"]


@pytest.mark.parametrize(("name", "published"), [("vit_tiny", 5_717_416), ("vit_small", 22_050_664)])
def test_vits_have_the_published_size(name: str, published: int) -> None:
    """DeiT-Ti's and DeiT-S's, which are these architectures (arXiv 2012.12877, 5M and 22M)."""
    with torch.device("meta"):
        network = backbones.build(VitConfig(name), (3, 224, 224), 1000, [0.5], [0.5])
    assert parameters(network) == published


@pytest.mark.parametrize("name", FROM_TORCHVISION)
def test_names_and_order_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        oracle = getattr(torchvision.models, name)()
        large, small = build(name, 64).backbone, build(name, 32).backbone
    assert {k: v.shape for k, v in large.state_dict().items()} == {
        k: v.shape for k, v in oracle.state_dict().items()
    }
    assert [type(layer) for layer in small.features] == [type(layer) for layer in oracle.features]  # type: ignore[union-attr]
    widths = [layer.out_channels for layer in small.features if isinstance(layer, nn.Conv2d)]  # type: ignore[union-attr]
    assert widths == [layer.out_channels for layer in oracle.features if isinstance(layer, nn.Conv2d)]
    assert set(small.state_dict()) <= {*oracle.state_dict(), "classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        # biases and weights, layer by layer
        ("alexnet", 32, 64 * (9 * 3 + 1) + 192 * (25 * 64 + 1) + 384 * (9 * 192 + 1) + 256 * (9 * 384 + 1)
         + 256 * (9 * 256 + 1) + 2 * 1024 * 1025 + 10 * 1025),
        ("vgg16", 32, 14_714_688 + 10 * 513),
        ("vgg16_bn", 32, 14_714_688 + 2 * 4_224 + 10 * 513),
    ],
)  # fmt: skip
def test_parameters_of_the_small_variants(name: str, size: int, expected: int, channels: int) -> None:
    network = build(name, size, channels, outputs=10)
    assert parameters(network) == expected - 64 * 9 * (3 - channels)
    assert network.eval()(torch.rand(2, channels, size, size)).shape == (2, 10)
    assert network.notes == []


@pytest.mark.parametrize("size", [17, 28, 32, 40])
def test_small_alexnet_leaves_two_by_two(size: int) -> None:
    module = build("alexnet", size, variant=Variant.cifar).backbone
    features = module.get_submodule("features")(torch.rand(1, 3, size, size))
    assert min(features.shape[2:]) >= 2
    if size <= 32:
        assert features.shape[2:] == (2, 2)


@pytest.mark.parametrize(
    ("asked", "pretrained", "size", "expected"),
    [
        (Variant.auto, False, 32, Variant.cifar),
        (Variant.auto, False, 63, Variant.cifar),
        (Variant.auto, False, 64, Variant.imagenet),
        (Variant.auto, True, 32, Variant.imagenet),
        (Variant.cifar, True, 224, Variant.cifar),
        (Variant.imagenet, False, 32, Variant.imagenet),
    ],
)
def test_the_rule_of_auto(asked: Variant, pretrained: bool, size: int, expected: Variant) -> None:
    config = ConvNetConfig("resnet18", pretrained=pretrained, variant=asked)
    assert chosen(config, (3, size, size + 9)) is chosen(config, (3, size + 9, size)) is expected


def test_auto_looks_at_what_enters_the_backbone() -> None:
    config = ConvNetConfig("resnet18", input_size=64)
    network = backbones.build(config, (3, 32, 32), 10, [0.5], [0.25])
    assert network.backbone.conv1.kernel_size == (7, 7)  # type: ignore[union-attr]
    assert network.notes == ["resized: 32x32 -> 64x64, bilinear"]
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "variant", "size", "smallest"),
    [
        ("alexnet", Variant.auto, 16, 17),
        ("alexnet", Variant.imagenet, 62, 63),
        ("vgg16", Variant.auto, 31, 32),
        ("vgg16_bn", Variant.imagenet, 28, 32),
    ],
)
def test_images_that_are_too_small(name: str, variant: Variant, size: int, smallest: int) -> None:
    of = "cifar" if variant is Variant.auto else variant
    with pytest.raises(RequestError) as caught:
        build(name, size, variant=variant)
    assert str(caught.value) == (
        f"backbone.name: {name} of variant {of} needs {smallest}x{smallest} images or larger, not "
        f"{size}x{size}; backbone.input_size={smallest} resizes them"
    )
    with torch.device("meta"):
        network = build(name, smallest, variant=variant).eval()
        assert network(torch.rand(1, 3, smallest, smallest)).shape == (1, 1000)


@pytest.mark.parametrize("name", EVERY)
def test_head_and_stem_are_layers(name: str) -> None:
    for size in (32, 64):
        with torch.device("meta"):
            network = build(name, size, channels=1, outputs=7)
        head = network.backbone.get_submodule(network.aliases["head"])
        stem = network.backbone.get_submodule(network.aliases["stem"])
        assert isinstance(head, nn.Linear)
        assert head.out_features == 7
        assert isinstance(stem, nn.Conv2d)
        assert stem.in_channels == 1
