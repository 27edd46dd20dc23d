from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sstune import backbones
from sstune.backbones import BACKBONES
from sstune.backbones.vit import patch_size
from sstune.schema import RequestError, VitConfig

sides = st.integers(1, 32).flatmap(lambda n: st.sampled_from([n, 2 * n, 4 * n, 8 * n, 16 * n]))


@pytest.mark.parametrize(("name", "width", "heads"), [("vit_tiny", 192, 3), ("vit_small", 384, 6)])
def test_patches_fit_the_image_and_the_head_the_classes(name: str, width: int, heads: int) -> None:
    made = BACKBONES[name](VitConfig(name, patch_size=4), (3, 16, 24), 7)
    assert made.module.patch_embed.num_patches == 4 * 6
    assert made.module(torch.rand(2, 3, 16, 24)).shape == (2, 7)
    assert isinstance(made.module.get_submodule(made.head), nn.Linear)
    assert isinstance(made.module.get_submodule(made.stem), nn.Conv2d)
    assert len(made.module.blocks) == 12
    assert made.module.embed_dim == width
    assert made.module.blocks[0].attn.num_heads == heads


def test_patches_that_do_not_tile_the_image_are_refused() -> None:
    with pytest.raises(RequestError, match=r"backbone.patch_size: 5 does not divide 32x32 pixels"):
        backbones.build(VitConfig("vit_tiny", patch_size=5), (3, 32, 32), 10, [0.5], [0.5])
    config = VitConfig("vit_tiny", pretrained=True, input_size=100)
    with pytest.raises(RequestError, match=r"backbone.patch_size: 16 does not divide 100x100 pixels"):
        backbones.build(config, (3, 32, 32), 10, [0.5], [0.5], weights=False)


class TestPatchSize:
    @given(sides, sides)
    def test_is_the_largest_that_tiles_with_seven_a_side(self, height: int, width: int) -> None:
        """No larger one would do, whichever way around the image is."""
        pixels = patch_size(VitConfig("vit_tiny"), (3, height, width))
        assert pixels in (16, 8, 4, 2, 1)
        assert height % pixels == width % pixels == 0
        assert min(height, width) >= 7 * pixels or pixels == 1
        larger = [p for p in (2, 4, 8, 16) if p > pixels]
        assert all(height % p or width % p or min(height, width) < 7 * p for p in larger)
        assert patch_size(VitConfig("vit_tiny"), (1, width, height)) == pixels

    @pytest.mark.parametrize(
        ("size", "expected"), [(8, 1), (28, 4), (32, 4), (64, 8), (96, 8), (112, 16), (224, 16), (29, 1)]
    )
    def test_of_usual_images(self, size: int, expected: int) -> None:
        assert patch_size(VitConfig("vit_tiny"), (3, size, size)) == expected

    @given(st.integers(1, 40), st.integers(1, 40), st.booleans())
    def test_a_given_one_is_taken_or_refused(self, pixels: int, size: int, pretrained: bool) -> None:
        config = VitConfig("vit_tiny", pretrained=pretrained, patch_size=pixels)
        if size % pixels == 0:
            assert patch_size(config, (3, size, 2 * size)) == pixels
        else:
            with pytest.raises(RequestError, match=f"{pixels} does not divide {size}x{2 * size} pixels"):
                patch_size(config, (3, size, 2 * size))

    def test_pretrained_it_is_that_of_the_weights(self) -> None:
        assert patch_size(VitConfig("vit_small", pretrained=True), (3, 32, 32)) == 16
