"""Other people's networks: what is converted, what stays exact, and what must be refused."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.layers import Conv2dSame, StdConv2d
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn

from sstune.rules import convert, feedback_layers
from sstune.rules.layers import CONVERTED
from sstune.schema import RequestError, RuleConfig

Rule = Callable[..., RuleConfig]

CLASSES = 5


def from_timm(name: str, **settings: object) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=CLASSES, **settings)


TINY_SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (1, 2)}

# How to make a network, the size of its images, and how many layers use feedback.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, dict[str, int]]] = {
    "resnet18": (from_timm("resnet18"), 32, {"Conv2d": 20, "Linear": 1}),
    "vgg11": (from_timm("vgg11", mlp_ratio=0.1), 32, {"Conv2d": 10, "Linear": 1}),
    "alexnet": (lambda: torchvision.models.alexnet(num_classes=CLASSES), 64, {"Conv2d": 5, "Linear": 3}),
    "vit_tiny": (
        from_timm("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2), 32, {"Conv2d": 1, "Linear": 9}
    ),
    "convnext": (from_timm("convnext_atto"), 32, {"Conv2d": 40, "Linear": 1}),
    "mobilenetv3": (from_timm("mobilenetv3_small_050"), 32, {"Conv2d": 53, "Linear": 1}),
    "densenet": (from_timm("densenet121"), 32, {"Conv2d": 120, "Linear": 1}),
    "mixer": (
        lambda: MlpMixer(CLASSES, img_size=32, patch_size=8, num_blocks=2, embed_dim=32),
        32,
        {"Conv2d": 1, "Linear": 9},
    ),
    "swin": (from_timm("swin_tiny_patch4_window7_224", **TINY_SWIN), 32, {"Conv2d": 1, "Linear": 18}),
}  # fmt: skip
EACH_NETWORK = pytest.mark.parametrize("which", NETWORKS)


def made(which: str) -> tuple[nn.Module, Tensor]:
    """A network with random weights, and a batch of images for it."""
    torch.manual_seed(0)
    make, size, _ = NETWORKS[which]
    network = make()
    for module in network.modules():
        if is_layer(module) and not module.weight.any():  # a head that starts at zero passes nothing down
            nn.init.normal_(module.weight, std=0.02)
    return network, torch.rand(4, 3, size, size)


def is_layer(module: nn.Module) -> bool:
    return isinstance(module, tuple(CONVERTED))


@pytest.mark.parametrize("name", ["usf", "dfa"])
@EACH_NETWORK
def test_converts_as_a_whole_and_says_so(which: str, name: str, rule_config: Rule) -> None:
    plain, x = made(which)
    network = copy.deepcopy(plain)
    report = convert(network, rule_config(name), seed=0, example=x[:2])

    layers = {key: type(module).__name__ for key, module in plain.named_modules() if is_layer(module)}
    assert report.feedback == layers
    assert set(feedback_layers(network)) == set(layers)
    assert Counter(report.feedback.values()) == NETWORKS[which][2]
    owners = {key for key, module in plain.named_modules() if list(module.parameters(recurse=False))}
    assert set(report.exact) == owners - set(layers)
    assert all(type(plain.get_submodule(key)).__name__ == kind for key, kind in report.exact.items())

    assert torch.equal(network.eval()(x), plain.eval()(x))
    F.cross_entropy(network.train()(x), torch.arange(4)).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    assert sum(float(parameter.grad.detach().norm()) > 0 for parameter in network.parameters()) > len(layers)


@EACH_NETWORK
def test_only_the_input_gradients_differ_from_backpropagation(which: str, rule_config: Rule) -> None:
    """The head's own gradients are exact under any rule, those below it are not."""
    plain, x = made(which)
    network = copy.deepcopy(plain)
    convert(network, rule_config("usf"), seed=0, example=x[:2])
    first, *_, last = feedback_layers(network)
    for each in (plain.eval(), network.eval()):
        F.cross_entropy(each(x), torch.arange(4)).backward()
    gradients = [[each.get_submodule(key).weight.grad for each in (plain, network)] for key in (first, last)]
    assert torch.allclose(*gradients[1], rtol=1e-4, atol=1e-7)
    assert not torch.allclose(*gradients[0], rtol=1e-2, atol=float(gradients[0][0].abs().max()) / 100)


@pytest.mark.parametrize("name", ["usf", "dfa"])
def test_a_layer_that_is_called_by_keyword(name: str, rule_config: Rule) -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(input=x)

    network, x = Keyword(), torch.rand(2, 3, requires_grad=True)
    convert(network, rule_config(name), seed=0, example=x.detach())
    network(x).sum().backward()
    assert x.grad is not None


class TestRefusals:
    def test_beit_whose_attention_reads_a_layers_weight(self, rule_config: Rule) -> None:
        network = timm.create_model(
            "beit_base_patch16_224", num_classes=CLASSES, img_size=32, embed_dim=24, depth=2, num_heads=2
        )
        x = torch.rand(2, 3, 32, 32)
        with pytest.raises(RequestError, match=r"blocks\.0\.attn\.qkv is not called.*rule\.exclude"):
            convert(network, rule_config("usf"), seed=0, example=x)
        assert feedback_layers(network) == {}
        report = convert(network, rule_config("usf", exclude=["*.qkv"]), seed=0, example=x)
        assert report.exact["blocks.0.attn.qkv"] == "Linear"
        assert "blocks.0.attn.proj" in report.feedback

    @pytest.mark.parametrize(
        ("layer", "kind"),
        [
            (nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 3)), "ParametrizedConv2d"),
            (nn.utils.parametrizations.orthogonal(nn.Linear(3, 3)), "ParametrizedLinear"),
            (StdConv2d(3, 3, 3), "StdConv2d"),
            (Conv2dSame(3, 3, 3), "Conv2dSame"),
            (nn.MultiheadAttention(4, 2), "MultiheadAttention"),
        ],
    )
    def test_layers_that_compute_something_else(self, layer: nn.Module, kind: str, rule_config: Rule) -> None:
        network = nn.ModuleDict({"fine": nn.Linear(3, 3), "other": layer})
        with pytest.raises(RequestError, match=rf"other \({kind}\) cannot be converted"):
            convert(network, rule_config("usf"), seed=0)
        assert feedback_layers(network) == {}

    @pytest.mark.parametrize("name", ["resnetv2_50x1_bit", "tf_mobilenetv3_small_075"])
    def test_networks_made_of_them(self, name: str, rule_config: Rule) -> None:
        with torch.device("meta"):
            network = timm.create_model(name, num_classes=CLASSES)
        with pytest.raises(RequestError, match=r"\((StdConv2d|Conv2dSame)\) cannot be converted"):
            convert(network, rule_config("usf"), seed=0)

    def test_torchs_own_transformer(self, rule_config: Rule) -> None:
        network = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2)
        with pytest.raises(RequestError, match=r"layers\.0\.self_attn \(MultiheadAttention\)"):
            convert(network, rule_config("usf"), seed=0)
