"""AlexNet's and VGG's published weights, from torch.hub's cache as it lies on a disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torchvision.models import AlexNet_Weights, VGG16_BN_Weights, VGG16_Weights
from torchvision.transforms import v2

from sstune import backbones
from sstune.backbones import Network, load_third_party
from sstune.schema import ConvNetConfig, RequestError, Variant

State = dict[str, torch.Tensor]
DATASET = [0.1], [0.9]  # constants that no weights expect
WEIGHTS = {
    "alexnet": AlexNet_Weights.DEFAULT,
    "vgg16": VGG16_Weights.DEFAULT,
    "vgg16_bn": VGG16_BN_Weights.DEFAULT,
}


def build(
    size: int,
    outputs: int = 1000,
    channels: int = 3,
    weights: bool = True,
    name: str = "alexnet",
    **fields: object,
) -> Network:
    torch.manual_seed(1)
    config = ConvNetConfig(name, pretrained=True, **fields)  # type: ignore[arg-type]
    return backbones.build(config, (channels, size, size), outputs, *DATASET, weights=weights).eval()


@pytest.fixture
def published(alexnet_state: tuple[Path, State], monkeypatch: pytest.MonkeyPatch) -> State:
    """AlexNet's weights, which lie in the cache that torch.hub looks at."""
    home, state = alexnet_state
    monkeypatch.setenv("TORCH_HOME", str(home))
    return state


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with nothing in it, and no network to fill it from."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for scheme in ("http_proxy", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(scheme, "http://127.0.0.1:9")
    return tmp_path / "hub/checkpoints"


@pytest.mark.parametrize("name", WEIGHTS)
def test_preprocessing_is_that_of_the_weights(name: str, empty_cache: Path) -> None:
    transforms = WEIGHTS[name].transforms()
    found = backbones.preprocessing(ConvNetConfig(name, pretrained=True))
    assert found is not None
    assert [*found.mean] == transforms.mean
    assert [*found.std] == transforms.std
    assert [*found.size] == transforms.crop_size * 2
    assert found.crop_pct == transforms.crop_size[0] / transforms.resize_size[0]
    assert found.interpolation == transforms.interpolation.value
    other = backbones.preprocessing(ConvNetConfig(name, pretrained=True, input_size=96))
    assert other is not None
    assert (other.size, other.mean) == ((96, 96), found.mean)
    assert backbones.preprocessing(ConvNetConfig(name)) is None


@pytest.mark.parametrize("size", [224, 64, 300])
def test_outputs_are_torchvisions_on_the_preprocessed_image(size: int, published: State) -> None:
    network = build(size)
    oracle = torchvision.models.alexnet()
    oracle.load_state_dict(published)
    transforms = AlexNet_Weights.DEFAULT.transforms()
    images = torch.rand(2, 3, size, size)
    resized = v2.functional.resize(images, transforms.crop_size * 2, transforms.interpolation, antialias=True)
    with torch.no_grad():
        expected = oracle.eval()(v2.functional.normalize(resized, transforms.mean, transforms.std))
        torch.testing.assert_close(network(images), expected, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(value, published[key]) for key, value in network.backbone.state_dict().items())
    assert any(note.startswith("resized") for note in network.notes) == (size != 224)


def test_another_head_is_new_and_the_rest_is_loaded(published: State) -> None:
    network = build(32, outputs=7)
    assert "classifier.6: new, 7x4096" in network.notes
    assert "resized: 32x32 -> 224x224, bilinear" in network.notes
    for key, value in network.backbone.state_dict().items():
        assert torch.equal(value, published[key]) == (not key.startswith("classifier.6.")), key


def test_grey_images_see_the_sum_over_colours(published: State) -> None:
    network = build(64, channels=1)
    stem = network.backbone.state_dict()["features.0.weight"]
    torch.testing.assert_close(stem, published["features.0.weight"].sum(1, keepdim=True))
    assert any("summed over its input channels" in note for note in network.notes)
    transforms = AlexNet_Weights.DEFAULT.transforms()
    assert float(network.mean) == pytest.approx(sum(transforms.mean) / 3)
    assert float(network.std) == pytest.approx(sum(transforms.std) / 3)


def test_the_small_variant_takes_what_fits(published: State) -> None:
    network = build(32, outputs=10, variant=Variant.cifar, input_size=32)
    new = ["features.0", "classifier.1", "classifier.4", "classifier.6"]
    for key, value in network.backbone.state_dict().items():
        fits = key.rpartition(".")[0] not in new
        assert (value.shape == published[key].shape and torch.equal(value, published[key])) == fits, key
    assert [note.partition(":")[0] for note in network.notes][:4] == new


def test_without_weights_the_same_network_but_for_them(published: State, empty_cache: Path) -> None:
    network = build(64, outputs=7, weights=False)
    assert network.size == (224, 224)
    assert network.mean.flatten().tolist() == pytest.approx(AlexNet_Weights.DEFAULT.transforms().mean)
    assert not torch.equal(network.backbone.state_dict()["features.3.weight"], published["features.3.weight"])
    assert not any("new" in note for note in network.notes)
    assert not empty_cache.exists()


def test_a_third_partys_file_of_other_classes(alexnet_state: tuple[Path, State]) -> None:
    home, state = alexnet_state
    network = backbones.build(ConvNetConfig("alexnet", variant=Variant.imagenet), (3, 64, 64), 7, *DATASET)
    (path,) = (home / "hub/checkpoints").iterdir()
    assert load_third_party(network, path) == [
        "classifier.6.weight: new, 7x4096 (the file has 1000x4096)",
        "classifier.6.bias: new, 7 (the file has 1000)",
    ]
    for key, value in network.backbone.state_dict().items():
        assert torch.equal(value, state[key]) == (not key.startswith("classifier.6.")), key


@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn"])
def test_vggs_features_under_a_small_head(name: str, empty_cache: Path) -> None:
    """Of the published file only the features, as its head would fill 500 MB."""
    torch.manual_seed(0)
    source = backbones.build(ConvNetConfig(name), (3, 32, 32), 4, *DATASET)
    features = {k: v for k, v in source.backbone.state_dict().items() if k.startswith("features.")}
    empty_cache.mkdir(parents=True)
    torch.save(features, empty_cache / WEIGHTS[name].url.rpartition("/")[2])
    network = build(32, outputs=10, name=name, variant=Variant.cifar, input_size=32)
    for key, value in network.backbone.state_dict().items():
        assert key.startswith("classifier.") or torch.equal(value, features[key]), key
    assert "classifier: new, 10x512" in network.notes
    oracle = getattr(torchvision.models, name)
    with torch.device("meta"):
        assert {k for k in oracle().state_dict() if k.startswith("features.")} == set(features)


def test_weights_that_do_not_fit_are_refused(empty_cache: Path) -> None:
    empty_cache.mkdir(parents=True)
    path = empty_cache / "alexnet-owt-7be5be79.pth"
    torch.save({"features.0.weight": torch.zeros(64, 3, 11, 11)}, path)
    with pytest.raises(
        RequestError, match=r"alexnet-owt-7be5be79\.pth does not fit alexnet: features\.0\.bias, "
    ):
        build(224)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.write_bytes(b""), "it is empty"),
        (lambda path: path.write_text("<html>404</html>"), "neither a zip of tensors nor a pickle"),
        (lambda path: torch.save(torch.nn.Linear(1, 1), path), "which could run code"),
        (os.mkfifo, "it is a FIFO"),
    ],
)
def test_damaged_weights_are_named(make: Callable[[Path], object], said: str, empty_cache: Path) -> None:
    empty_cache.mkdir(parents=True)
    make(empty_cache / "alexnet-owt-7be5be79.pth")
    with pytest.raises(RequestError) as caught:
        build(224)
    assert str(caught.value).startswith(
        f"backbone.pretrained: {empty_cache / 'alexnet-owt-7be5be79.pth'} is no"
    )
    assert said in str(caught.value)


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_cannot_be_had_are_a_request_error(name: str, empty_cache: Path) -> None:
    with pytest.raises(RequestError) as caught:
        build(32, name=name, outputs=2, variant=Variant.cifar)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"backbone.pretrained: the weights of torchvision's {name} are not cached and")
    assert WEIGHTS[name].url in line
    assert str(empty_cache / WEIGHTS[name].url.rpartition("/")[2]) in line
    assert "init_from=FILE" in line
