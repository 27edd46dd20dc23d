"""timm's ResNet-18 and its two stems."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sstune import backbones, rules
from sstune.schema import ConvNetConfig, RuleConfig, Variant

PARAMETERS = 11_689_512  # of torchvision's and timm's, 1000 classes, 3 channels


def build(stem: Variant, channels: int = 3, outputs: int = 10) -> backbones.Network:
    return backbones.build(ConvNetConfig("resnet18", stem), (channels, 32, 32), outputs, [0.5], [0.25]).eval()


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
@pytest.mark.parametrize("stem", list(Variant))
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


def test_pretrained_weights_that_cannot_be_had_are_a_request_error(tmp_path: Path) -> None:
    code = """
        from sstune import backbones
        from sstune.schema import RequestError, ConvNetConfig, Variant
        try:
            config = ConvNetConfig("resnet18", Variant.imagenet, pretrained=True)
            backbones.build(config, (3, 32, 32), 10, [0.5], [0.25])
        except RequestError as error:
            print(error)
    """
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    hub = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TORCH_HOME")
    environment = {key: value for key, value in os.environ.items() if key not in hub}
    program = "\n".join(line.removeprefix(" " * 8) for line in code.splitlines())
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment, **offline},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    (line,) = done.stdout.splitlines()
    assert line.startswith("backbone.pretrained: the weights of timm/resnet18")
    assert "init_from=FILE" in line
