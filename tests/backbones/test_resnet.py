"""timm's ResNets and their two stems."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sstune import backbones, rules
from sstune.schema import ConvNetConfig, RuleConfig, Variant

PARAMETERS = 11_689_512  # of torchvision's and timm's, 1000 classes, 3 channels


def build(stem: Variant, channels: int = 3, outputs: int = 10) -> backbones.Network:
    return backbones.build(
        ConvNetConfig("resnet18", variant=stem), (channels, 32, 32), outputs, [0.5], [0.25]
    ).eval()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("stem", "kernel", "stride", "size", "stage_1"),
    [(Variant.imagenet, 7, 2, 64, 16), (Variant.cifar, 3, 1, 16, 16)],
)
def test_stems(stem: Variant, kernel: int, stride: int, size: int, stage_1: int, channels: int) -> None:
    network = build(stem, channels)
    modules: dict[str, Any] = dict(network.backbone.named_modules())
    first = modules[network.aliases["stem"]]
    assert first.weight.shape == (64, channels, kernel, kernel)
    assert first.stride == (stride, stride)
    assert first.bias is None
    assert isinstance(modules["maxpool"], nn.Identity) == (stem is Variant.cifar)
    seen = []
    modules["layer1"].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    assert network(torch.rand(2, channels, size, size)).shape == (2, 10)
    assert seen == [(2, 64, stage_1, stage_1)]


@pytest.mark.parametrize(("channels", "outputs"), [(1, 10), (3, 200)])
@pytest.mark.parametrize("stem", [Variant.auto, Variant.cifar, Variant.imagenet])
def test_parameter_count_follows_from_channels_and_classes(
    stem: Variant, channels: int, outputs: int
) -> None:
    network = build(stem, channels, outputs)
    kernel = 49 if stem is Variant.imagenet else 9
    expected = PARAMETERS + (kernel * channels - 49 * 3) * 64 + 513 * (outputs - 1000)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected
    assert network.notes == []


def test_converts_all_convolutions_and_the_head() -> None:
    network = build(Variant.cifar)
    report = rules.convert(network.backbone, RuleConfig("usf", exclude=["stem"]), 0, network.aliases)
    assert str(report).startswith(
        "feedback in 19 Conv2d, 1 Linear; exact derivatives in 1 Conv2d, 20 BatchNorm2d"
    )
    assert "fc" in report.feedback
    assert "conv1" in report.exact
