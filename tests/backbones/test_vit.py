from __future__ import annotations

import pytest
import torch
from torch import nn

from sstune import backbones
from sstune.backbones import BACKBONES
from sstune.schema import RequestError, VitConfig


def test_patches_fit_the_image_and_the_head_the_classes() -> None:
    made = BACKBONES["vit_tiny"](VitConfig("vit_tiny", patch_size=4), (3, 16, 24), 7)
    assert made.module.patch_embed.num_patches == 4 * 6
    assert made.module(torch.rand(2, 3, 16, 24)).shape == (2, 7)
    assert isinstance(made.module.get_submodule(made.head), nn.Linear)
    assert isinstance(made.module.get_submodule(made.stem), nn.Conv2d)
    assert len(made.module.blocks) == 12
    assert made.module.embed_dim == 192


def test_patches_that_do_not_tile_the_image_are_refused() -> None:
    with pytest.raises(RequestError, match=r"backbone.patch_size: 5 does not divide 32x32 pixels"):
        backbones.build(VitConfig("vit_tiny", patch_size=5), (3, 32, 32), 10, [0.5], [0.5])
