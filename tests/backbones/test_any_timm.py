"""Models of timm's by their name there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sstune import backbones, rules
from sstune.schema import RequestError, RuleConfig, TimmConfig


def build(name: str, size: int = 32, input_size: int | None = None, channels: int = 3) -> backbones.Network:
    config = TimmConfig(name, input_size=input_size)
    return backbones.build(config, (channels, size, size), 7, [0.5], [0.25]).eval()


@pytest.mark.parametrize(
    ("name", "head", "stem"),
    [
        ("convnext_atto", ["head.fc"], ["stem.0"]),
        ("mobilenetv3_small_050", ["classifier"], ["conv_stem"]),
        ("fastvit_t8", ["head.fc"], ["stem.0.conv_kxk.0.conv", "stem.0.conv_scale.conv"]),
        ("levit_128s", ["head.linear", "head_dist.linear"], ["stem.conv1.linear"]),
    ],
)
def test_head_and_stem_are_patterns_for_these_layers(name: str, head: list[str], stem: list[str]) -> None:
    """Also where they are several layers."""
    network = build(name)
    images = torch.rand(2, 3, 32, 32)
    assert network(images).shape == (2, 7)
    everything = rules.convert(build(name).backbone, RuleConfig("usf"), 0)
    rule = RuleConfig("usf", exclude=[*network.aliases.values()])
    report = rules.convert(network.backbone, rule, 0, network.aliases, network.prepare(images))
    assert set(everything.feedback) - set(report.feedback) == {*head, *stem}


def test_fixed_input_sizes() -> None:
    """Images are resized to it, or else the model is made for the size that is asked for."""
    network = build("vit_tiny_patch16_224")
    assert network.size == (224, 224)
    assert network.notes == ["resized: 32x32 -> 224x224, bilinear"]
    network = build("vit_tiny_patch16_224", input_size=64, channels=1)
    assert network.backbone.patch_embed.img_size == (64, 64)  # type: ignore[union-attr]
    assert network.notes == ["resized: 32x32 -> 64x64, bilinear"]
    assert network(torch.rand(2, 1, 32, 32)).shape == (2, 7)
    assert build("vit_tiny_patch16_224", size=224).size is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("convnxt_atto", r"^backbone\.name: unknown 'convnxt_atto', did you mean 'convnext_atto'\?$"),
        (
            "resnet18.a9_in1k",
            r"^backbone\.name: unknown 'resnet18.a9_in1k', did you mean 'resnet18\.a\d_in1k'",
        ),
        ("%%%%", r"^backbone\.name: unknown '%%%%', known: those of timm\.list_models\(\)$"),
        (
            "inception_v3",
            r"^backbone\.name: timm's inception_v3 does not work with 32x32 images: .*input_size",
        ),
        ("qwen3_vit_88m_enc", r"^backbone\.name: timm's qwen3_vit_88m_enc is not a classifier$"),
    ],
)
def test_what_cannot_be_made_is_a_request_error_in_one_line(name: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        build(name)
    assert "\n" not in str(caught.value)


def test_a_safetensors_file_is_loaded(tmp_path: Path) -> None:
    source, target = build("convnext_atto"), build("convnext_atto")
    path = tmp_path / "model.safetensors"
    save_file(source.backbone.state_dict(), path)
    assert backbones.load_third_party(target, path) == []
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(target(images), source(images))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RequestError, match=r"^init_from: .* is not a checkpoint that can be read safely"):
        backbones.load_third_party(target, path)
