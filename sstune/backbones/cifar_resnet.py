"""The ResNets of He et al. 2016 (arXiv 1512.03385, section 4.2) for 32x32 images, with option-A shortcuts.

Parameter names are those of published checkpoints: ``conv1``, ``bn1``,
``layer{1,2,3}.{i}.{conv1,bn1,conv2,bn2}``, ``linear``; the shortcuts have no parameters.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sstune.backbones.registry import BACKBONES, Backbone, Shape
from sstune.schema import BackboneConfig


def option_a(x: Tensor, channels: int, stride: int) -> Tensor:
    """Identity shortcut: every ``stride``-th pixel, zeros for new channels."""
    new = channels - x.shape[1]
    return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, new // 2, new - new // 2))


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if residual.shape != x.shape:
            x = option_a(x, residual.shape[1], self.stride)
        return F.relu(residual + x)


class CifarResNet(nn.Module):
    """ResNet of depth ``6 * blocks + 2``: stages of 16, 32 and 64 channels, global average pooling."""

    def __init__(self, blocks: int, channels: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, stride=1)
        self.layer2 = self._stage(16, 32, blocks, stride=2)
        self.layer3 = self._stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = Block(in_channels, channels, stride)
        return nn.Sequential(first, *(Block(channels, channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))


@BACKBONES.register("resnet20", "resnet32", "resnet44", "resnet56")
def cifar_resnet(config: BackboneConfig, shape: Shape, outputs: int) -> Backbone:
    """resnet20, 32, 44, 56; the number is the depth."""
    depth = int(config.name.removeprefix("resnet"))
    return Backbone(CifarResNet((depth - 2) // 6, shape[0], outputs), head="linear", stem="conv1")
