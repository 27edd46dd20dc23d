"""The CIFAR ResNets against He et al.'s description, recomputed in NumPy."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from sstune import backbones
from sstune.backbones import BACKBONES, cifar_resnet
from sstune.backbones.cifar_resnet import CifarResNet, option_a
from sstune.schema import BackboneConfig, RequestError

Array = npt.NDArray[np.float64]
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def expected_parameters(depth: int, channels: int, outputs: int) -> int:
    """Convolutions 3x3 without bias, two numbers per normalised channel, one linear layer, free shortcuts."""
    widths = [channels, 16]
    for width in (16, 32, 64):
        widths += [width] * ((depth - 2) // 3)
    convolutions = sum(9 * a * b + 2 * b for a, b in itertools.pairwise(widths))
    return convolutions + 64 * outputs + outputs


@pytest.mark.parametrize(
    ("name", "millions", "parameters"),
    [
        ("resnet20", 0.27, 269_722),
        ("resnet32", 0.46, 464_154),
        ("resnet44", 0.66, 658_586),
        ("resnet56", 0.85, 853_018),
    ],
)
def test_parameter_counts_are_those_of_the_paper(name: str, millions: float, parameters: int) -> None:
    module = BACKBONES[name](BackboneConfig(name), (3, 32, 32), 10).module
    depth = int(name.removeprefix("resnet"))
    counted = sum(parameter.numel() for parameter in module.parameters())
    assert counted == parameters == expected_parameters(depth, 3, 10)
    assert round(parameters / 1e6, 2) == millions
    assert sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in module.modules()) == depth


@pytest.mark.parametrize(("channels", "outputs", "size"), [(1, 7, 8), (3, 200, 32), (4, 2, 9)])
def test_other_channels_classes_and_sizes(channels: int, outputs: int, size: int) -> None:
    module = BACKBONES["resnet20"](BackboneConfig("resnet20"), (channels, 32, 32), outputs).module
    counted = sum(parameter.numel() for parameter in module.parameters())
    assert counted == expected_parameters(20, channels, outputs)
    assert module(torch.rand(2, channels, size, size)).shape == (2, outputs)


def conv3x3(x: Array, weight: Array, stride: int) -> Array:
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows[:, :, ::stride, ::stride], weight)


def recomputed(state: dict[str, Array], x: Array, blocks: int) -> Array:
    def norm(x: Array, name: str) -> Array:
        mean, var, gain, shift = (
            state[f"{name}.{part}"][:, None, None]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        result: Array = (x - mean) / np.sqrt(var + 1e-5) * gain + shift
        return result

    x = np.maximum(norm(conv3x3(x, state["conv1.weight"], 1), "bn1"), 0)
    for stage, width in ((1, 16), (2, 32), (3, 64)):
        for i in range(blocks):
            name = f"layer{stage}.{i}"
            stride = 2 if stage > 1 and i == 0 else 1
            inner = np.maximum(norm(conv3x3(x, state[f"{name}.conv1.weight"], stride), f"{name}.bn1"), 0)
            inner = norm(conv3x3(inner, state[f"{name}.conv2.weight"], 1), f"{name}.bn2")
            shortcut = np.zeros_like(inner)
            before = (width - x.shape[1]) // 2
            shortcut[:, before : before + x.shape[1]] = x[:, :, ::stride, ::stride]
            x = np.maximum(inner + shortcut, 0)
    return x.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("size", [8, 11])
def test_outputs_equal_a_recomputation(blocks: int, size: int) -> None:
    torch.manual_seed(0)
    module = CifarResNet(blocks, channels=3, outputs=10).double().eval()
    stream = np.random.default_rng(0)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.dim() == 1:  # normalisation that does nothing would hide mistakes
                tensor.copy_(torch.from_numpy(stream.uniform(0.5, 1.5, tensor.shape)))
    x = stream.normal(size=(2, 3, size, size))
    state = {key: value.numpy() for key, value in module.state_dict().items()}
    with torch.no_grad():
        outputs = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(outputs, recomputed(state, x, blocks), **EXACT)


@pytest.mark.parametrize(
    ("old", "new", "stride", "size"),
    [(16, 32, 2, 8), (32, 64, 2, 7), (3, 6, 2, 4), (4, 4, 2, 6), (2, 5, 1, 3)],
)
def test_option_a(old: int, new: int, stride: int, size: int) -> None:
    x = torch.rand(2, old, size, size)
    shortcut = option_a(x, new, stride)
    first = (new - old) // 2
    assert shortcut.shape[1] == new
    for channel in range(new):
        source = x[:, channel - first, ::stride, ::stride] if first <= channel < first + old else None
        expected = torch.zeros_like(shortcut[:, channel]) if source is None else source
        assert torch.equal(shortcut[:, channel], expected)


def test_convolutions_start_from_he_et_al_2015() -> None:
    torch.manual_seed(0)
    weight = CifarResNet(1, 3, 10).layer3[0].conv2.weight
    assert isinstance(weight, torch.Tensor)
    assert float(weight.detach().std()) == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.02)


class TestNetwork:
    @pytest.fixture
    def network(self) -> backbones.Network:
        torch.manual_seed(0)
        return backbones.build(
            BackboneConfig("resnet20"), (3, 32, 32), 10, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
        ).eval()

    def test_normalises_first(self, network: backbones.Network) -> None:
        images = torch.rand(2, 3, 8, 8)
        normalised = images.clone()
        for channel, (mean, std) in enumerate([(0.5, 0.2), (0.4, 0.3), (0.3, 0.4)]):
            normalised[:, channel] = (images[:, channel] - mean) / std
        torch.testing.assert_close(network(images), network.backbone(normalised))

    def test_constants_are_not_in_the_state_dict_and_move_along(self, network: backbones.Network) -> None:
        assert {key.split(".")[0] for key in network.state_dict()} == {"backbone"}
        assert network.double().mean.dtype == torch.float64
        assert network(torch.rand(1, 3, 8, 8, dtype=torch.float64)).dtype == torch.float64

    def test_names_its_head_and_stem(self, network: backbones.Network) -> None:
        modules: dict[str, Any] = dict(network.backbone.named_modules())
        assert modules[network.aliases["head"]].out_features == 10
        assert modules[network.aliases["stem"]].in_channels == 3
        assert network.notes == []

    @pytest.mark.parametrize(
        ("mean", "channels", "fits"), [(1, 1, True), (1, 3, True), (3, 3, True), (3, 1, False)]
    )
    def test_as_many_constants_as_channels_or_one(self, mean: int, channels: int, fits: bool) -> None:
        def build() -> backbones.Network:
            return backbones.build(
                BackboneConfig("resnet20"), (channels, 8, 8), 2, [0.5] * mean, [0.5] * mean
            )

        if fits:
            assert build()(torch.rand(1, channels, 8, 8)).shape == (1, 2)
        else:
            with pytest.raises(
                RequestError, match=r"dataset\.mean: has 3 values, the images have 1 channels"
            ):
                build()

    def test_unknown_names_are_refused_with_the_nearest(self) -> None:
        with pytest.raises(RequestError, match=r"backbone\.name: unknown 'resnet21', did you mean 'resnet"):
            backbones.build(BackboneConfig("resnet21"), (3, 32, 32), 10, [0.5], [0.5])


def test_the_family_is_registered() -> None:
    assert {"resnet20", "resnet32", "resnet44", "resnet56"} <= set(BACKBONES)
    assert BACKBONES["resnet20"] is cifar_resnet.cifar_resnet
