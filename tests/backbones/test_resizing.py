"""Resizing inside the network, against Pillow's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sstune import backbones
from sstune.backbones.images import resize
from sstune.schema import ConvNetConfig, Interpolation

PILLOW = {
    Interpolation.bilinear: Image.Resampling.BILINEAR,
    Interpolation.bicubic: Image.Resampling.BICUBIC,
}
sides = st.integers(1, 40)
widths = st.integers(2, 40)  # PyTorch's antialiasing is wrong where the result is one pixel wide


@settings(deadline=None)
@given(st.tuples(sides, sides), st.tuples(sides, widths), st.sampled_from(Interpolation), st.integers(0, 99))
def test_equals_pillow(
    old: tuple[int, int], new: tuple[int, int], interpolation: Interpolation, seed: int
) -> None:
    pixels = np.random.default_rng(seed).random(old, dtype=np.float32)
    expected = np.asarray(Image.fromarray(pixels).resize(new[::-1], PILLOW[interpolation])).clip(0, 1)
    resized = resize(torch.from_numpy(pixels)[None, None], new, interpolation)
    assert resized.shape == (1, 1, *new)
    np.testing.assert_allclose(resized[0, 0].numpy(), expected, atol=1e-5)


def test_memory_format_makes_no_difference() -> None:
    images = torch.rand(2, 3, 32, 32)
    last = images.to(memory_format=torch.channels_last)
    for interpolation in Interpolation:
        torch.testing.assert_close(
            resize(last, (50, 20), interpolation), resize(images, (50, 20), interpolation)
        )


def test_an_attacker_moves_the_datasets_pixels() -> None:
    """Gradients reach every pixel of the image as it is before it is shrunk or enlarged."""
    torch.manual_seed(0)
    for size in (8, 48):
        config = ConvNetConfig("resnet18", input_size=size)
        network = backbones.build(config, (3, 32, 32), 5, [0.5], [0.25])
        assert network.notes == [f"resized: 32x32 -> {size}x{size}, bilinear"]
        images = torch.rand(2, 3, 32, 32, requires_grad=True)
        prepared = network.prepare(images)
        assert prepared.shape == (2, 3, size, size)
        prepared.sum().backward()
        assert images.grad is not None
        assert (images.grad > 0).all()


@pytest.mark.parametrize("name", ["resnet18", "alexnet"])
def test_images_of_that_size_are_left_alone(name: str) -> None:
    network = backbones.build(ConvNetConfig(name, input_size=32), (3, 32, 32), 5, [0.5], [0.25])
    assert network.size is None
    assert network.notes == []
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(network.prepare(images), (images - 0.5) / 0.25)
