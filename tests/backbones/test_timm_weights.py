"""ResNet's and ViT's published weights, from the hub's cache as its client lays it out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data import resolve_data_config
from timm.layers import resample_abs_pos_embed
from torchvision.transforms import InterpolationMode, v2

from sstune import backbones
from sstune.schema import (
    BackboneConfig,
    ConvNetConfig,
    PretrainedConfig,
    RequestError,
    TimmConfig,
    Variant,
    VitConfig,
)

State = dict[str, torch.Tensor]

# (configuration, channels, image size, outputs)
REQUESTS: dict[str, tuple[PretrainedConfig, int, int, int]] = {
    "resnet18": (ConvNetConfig("resnet18", pretrained=True), 3, 224, 1000),
    "resnet18 from small images": (ConvNetConfig("resnet18", pretrained=True), 3, 32, 1000),
    "resnet18 at 64 pixels": (ConvNetConfig("resnet18", pretrained=True, input_size=64), 3, 96, 1000),
    "resnet18 of other classes": (ConvNetConfig("resnet18", pretrained=True, input_size=32), 3, 32, 7),
    "grey resnet18": (ConvNetConfig("resnet18", pretrained=True, input_size=64), 1, 28, 7),
    "small resnet18": (
        ConvNetConfig("resnet18", pretrained=True, input_size=32, variant=Variant.cifar), 3, 32, 7,
    ),
    "vit_tiny": (VitConfig("vit_tiny", pretrained=True), 3, 224, 1000),
    "vit_tiny from small images": (VitConfig("vit_tiny", pretrained=True), 3, 32, 1000),
    "vit_tiny of small patches": (
        VitConfig("vit_tiny", pretrained=True, input_size=64, patch_size=8), 3, 32, 7,
    ),
    "any": (TimmConfig("resnet18.a1_in1k", pretrained=True), 3, 224, 1000),
}  # fmt: skip
ARCHITECTURES = {"vit_tiny": "vit_tiny_patch16_224"}
ANSWER = """
import sys, torch
from sstune import backbones
requests, images = torch.load(sys.argv[1], weights_only=False)
answers = {}
for name, (config, channels, size, outputs) in requests.items():
    torch.manual_seed(1)
    network = backbones.build(config, (channels, size, size), outputs, [0.1], [0.9]).eval()
    with torch.no_grad():
        answers[name] = network(images[name]), network.backbone.state_dict(), network.notes
torch.save(answers, sys.argv[2])
"""


@pytest.fixture(scope="module")
def images() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: torch.rand(2, channels, size, size) for name, (_, channels, size, _) in REQUESTS.items()}


@pytest.fixture(scope="module")
def answers(
    timm_states: tuple[Path, dict[str, State]],
    images: dict[str, torch.Tensor],
    offline: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[torch.Tensor, State, list[str]]]:
    """Outputs, weights and notes of every request, from a process that finds only that cache."""
    folder = tmp_path_factory.mktemp("answers")
    torch.save((REQUESTS, images), folder / "requests.pt")
    offline(ANSWER, timm_states[0], folder / "requests.pt", folder / "answers.pt")
    return torch.load(folder / "answers.pt", weights_only=True)


@pytest.fixture
def states(timm_states: tuple[Path, dict[str, State]]) -> dict[str, State]:
    return timm_states[1]


@pytest.mark.parametrize("name", [name for name, (_, _, _, outputs) in REQUESTS.items() if outputs == 1000])
def test_outputs_are_timms_on_the_preprocessed_image(
    name: str, answers: Any, images: dict[str, torch.Tensor], states: dict[str, State]
) -> None:
    config = REQUESTS[name][0]
    architecture = ARCHITECTURES.get(config.name, "resnet18")
    oracle = timm.create_model(architecture)
    oracle.load_state_dict(states[architecture])
    expects = resolve_data_config(model=oracle)
    size = [config.input_size or expects["input_size"][1]] * 2
    mode = InterpolationMode(expects["interpolation"])
    resized = v2.functional.resize(images[name], size, mode, antialias=True).clamp(0, 1)
    with torch.no_grad():
        expected = oracle.eval()(v2.functional.normalize(resized, expects["mean"], expects["std"]))
    outputs, state, _ = answers[name]
    torch.testing.assert_close(outputs, expected, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(value, states[architecture][key]) for key, value in state.items())


@pytest.mark.parametrize(
    ("name", "differs", "notes"),
    [
        ("resnet18", [], []),
        (
            "resnet18 from small images",
            [],
            ["resized: 32x32 -> 224x224, bicubic"],
        ),
        ("resnet18 of other classes", ["fc."], ["head: new, 7 outputs (the weights have 1000)"]),
        (
            "grey resnet18",
            ["fc.", "conv1."],
            [
                "head: new, 7 outputs (the weights have 1000)",
                "stem: the weights' first convolution, summed over its input channels for grey images",
                "resized: 28x28 -> 64x64, bicubic",
            ],
        ),
        (
            "small resnet18",
            ["fc.", "conv1."],
            [
                "head: new, 7 outputs (the weights have 1000)",
                "stem: new, the first convolution of variant cifar",
            ],
        ),
        (
            "vit_tiny of small patches",
            ["head.", "patch_embed.proj.weight", "pos_embed"],
            [
                "head: new, 7 outputs (the weights have 1000)",
                "stem: patch embedding resampled, 16 -> 8 pixels a patch",
                "position embedding resampled, 14x14 -> 8x8 patches",
                "resized: 32x32 -> 64x64, bicubic",
            ],
        ),
    ],
)
def test_all_is_loaded_but_what_the_notes_say(
    name: str, differs: list[str], notes: list[str], answers: Any, states: dict[str, State]
) -> None:
    published = states[ARCHITECTURES.get(REQUESTS[name][0].name, "resnet18")]
    _, state, said = answers[name]
    assert [note for note in said if not note.startswith("normalised")] == notes
    for key, value in state.items():
        same = value.shape == published[key].shape and torch.equal(value, published[key])
        assert same == (not key.startswith(tuple(differs))), key


def test_grey_images_see_the_sum_over_colours(answers: Any, states: dict[str, State]) -> None:
    _, state, notes = answers["grey resnet18"]
    torch.testing.assert_close(state["conv1.weight"], states["resnet18"]["conv1.weight"].sum(1, keepdim=True))
    assert "normalised as the weights expect: mean 0.449, std 0.226" in notes


def test_position_embeddings_are_resampled_by_timm(answers: Any, states: dict[str, State]) -> None:
    _, state, _ = answers["vit_tiny of small patches"]
    published = states["vit_tiny_patch16_224"]["pos_embed"]
    torch.testing.assert_close(
        state["pos_embed"], resample_abs_pos_embed(published, (8, 8), num_prefix_tokens=1)
    )


@pytest.mark.parametrize(
    ("config", "architecture"),
    [
        (ConvNetConfig("resnet18", pretrained=True), "resnet18"),
        (ConvNetConfig("resnet50", pretrained=True), "resnet50"),
        (VitConfig("vit_tiny", pretrained=True), "vit_tiny_patch16_224"),
        (VitConfig("vit_small", pretrained=True), "vit_small_patch16_224"),
        (TimmConfig("inception_v3", pretrained=True), "inception_v3"),
        (TimmConfig("mobilevit_xxs", pretrained=True), "mobilevit_xxs"),
    ],
)
def test_preprocessing_is_that_of_the_weights(config: PretrainedConfig, architecture: str) -> None:
    """Read without the weights: none of these are cached here."""
    expects = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(architecture).to_dict())
    found = backbones.preprocessing(config)
    assert found is not None
    assert found.mean == expects["mean"]
    assert found.std == expects["std"]
    assert found.size == expects["input_size"][1:]
    assert found.crop_pct == expects["crop_pct"]
    assert found.interpolation == expects["interpolation"]


def test_no_preprocessing_without_weights() -> None:
    for config in (BackboneConfig("resnet20"), ConvNetConfig("resnet18"), TimmConfig("resnet18")):
        assert backbones.preprocessing(config) is None
    with pytest.raises(RequestError, match=r"^backbone\.pretrained: timm has no weights of darknet17$"):
        backbones.preprocessing(TimmConfig("darknet17", pretrained=True))


TRAIN = """
import sys
from sstune.cli import main
line = ["backbone=vit_tiny", "backbone.pretrained=true", "backbone.input_size=32"]
line += ["dataset.test_fraction=0.9"]
limits = ["epochs=1", "batch_size=64", "alignment=false", "device=cpu", "threads=1", f"out={sys.argv[1]}"]
raise SystemExit(main(["train", *line, *limits]))
"""
GO_ON = """
import sys
from pathlib import Path
from sstune.cli import main
limits = ["device=cpu", "threads=1", f"out={sys.argv[1]}"]
(run,) = (Path(sys.argv[1]) / "train").iterdir()
tuned = ["epochs=1", "batch_size=64", "rule=usf", "alignment=false"]
assert main(["finetune", f"init_from={run}", *tuned, *limits]) == 0
(run,) = (Path(sys.argv[1]) / "finetune").iterdir()
attack = ["attack=fgsm", "attack.n=20", "attack.eps=[8/255]"]
raise SystemExit(main(["attack", f"init_from={run}", *attack, *limits]))
"""


def test_only_training_needs_the_weights(
    timm_states: tuple[Path, dict[str, State]], offline: Any, tmp_path: Path
) -> None:
    """Fine-tuning and attacks start from the run, and keep the weights' preprocessing."""
    out = tmp_path / "runs"
    shown = offline(TRAIN, timm_states[0], out)
    assert "resized: 8x8 -> 32x32, bicubic" in shown
    offline(GO_ON, tmp_path / "empty", out)
    expected = {
        "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "size": [32, 32], "crop_pct": 0.9,
        "interpolation": "bicubic",
    }  # fmt: skip
    for command in ("train", "finetune"):
        (row,) = (out / command).glob("*/result.json")
        measured = json.loads(row.read_text())
        assert measured["preprocessing"] == expected
        assert "resized: 8x8 -> 32x32, bicubic" in measured["notes"]
        assert any("head: new" in note for note in measured["notes"]) == (command == "train")
    (row,) = (out / "attack").glob("*/result.json")
    assert len(json.loads(row.read_text())["measurements"]) == 3


MISSING = """
from sstune import backbones
from sstune.schema import ConvNetConfig, RequestError
try:
    backbones.build(ConvNetConfig("resnet18", pretrained=True), (3, 32, 32), 10, [0.5], [0.25])
except RequestError as error:
    print(error)
"""


def test_weights_that_cannot_be_had_are_a_request_error(offline: Any, tmp_path: Path) -> None:
    (line,) = offline(MISSING, tmp_path).splitlines()
    assert line.startswith("backbone.pretrained: the weights of timm/resnet18.a1_in1k are not cached and")
    assert f"download model.safetensors to the hub's cache {tmp_path / 'hub'} " in line
    assert "init_from=FILE" in line


def test_damaged_weights_are_a_request_error(
    timm_states: tuple[Path, dict[str, State]], offline: Any, tmp_path: Path
) -> None:
    (file,) = timm_states[0].glob("hub/models--timm--resnet18*/snapshots/*/*")
    damaged = tmp_path / file.relative_to(timm_states[0])
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(file.read_bytes()[:100_000])
    refs = file.parents[2] / "refs/main"
    (tmp_path / refs.relative_to(timm_states[0])).parent.mkdir()
    (tmp_path / refs.relative_to(timm_states[0])).write_text(refs.read_text())
    (line,) = offline(MISSING, tmp_path).splitlines()
    assert line.startswith("backbone.pretrained: the weights of timm/resnet18.a1_in1k in ")
    assert "cannot be loaded" in line
    assert "remove model.safetensors there" in line
