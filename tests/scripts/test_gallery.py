"""The gallery: its networks build and are what they say, and truth finds what they hide."""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from scipy.fft import dctn, idctn
from torch import Tensor, nn

import sstune

sys.path.append(str(Path(sstune.__file__).parents[1]))  # as in the folder in which sstune is called

from scripts.gallery import GALLERY, __main__, mixtures
from scripts.gallery.content import keys, uniform
from scripts.gallery.entry import Entry, base_label, load
from scripts.gallery.filters import Median, Smooth
from scripts.gallery.steps import Jpeg
from scripts.gallery.table import Row, append, read
from sstune import rules
from sstune.backbones import Network, build
from sstune.commands import imported
from sstune.composition import compose
from sstune.schema import RuleConfig

SHAPES = {"digits": (1, 8, 8), "cifar": (3, 32, 32)}
SAME_OUTPUTS = ("wrong gradient", "mixtures")  # as the twin
VARYING = ("input_noise", "random_resize", "stochastic_pruning", "random_subnetwork", "noise_by_position")
FEW = ["dataset=digits", "attack.n=40", "attack.eps=[32/255]", "threads=1", "dataset.test_fraction=0.8"]

pytestmark = pytest.mark.usefixtures("one_thread")


def untrained(shape: tuple[int, int, int]) -> Network:
    """A ResNet-20 whose normalisation layers have seen some batches."""
    torch.manual_seed(0)
    config = compose("attack", ["dataset=digits"])
    network = build(config.backbone, shape, 10, [0.5], [0.25], weights=False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the average over batches
    with torch.no_grad():
        network.train()(torch.rand(32, *shape))
    return network.eval()


@pytest.fixture(scope="module")
def bases() -> dict[str, Network]:
    return {name: untrained(shape) for name, shape in SHAPES.items()}


@pytest.fixture
def of_digits(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base network of the entries is one that has learnt the digits."""
    monkeypatch.setenv("CHECKPOINT", str(trained))


def gradient(network: nn.Module, images: Tensor) -> Tensor:
    leaf = images.clone().requires_grad_()
    logits = network(leaf) + 0 * leaf.sum()
    return torch.autograd.grad(logits[:, 1].sum() - logits[:, 0].sum(), leaf)[0]


class TestEveryEntry:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("entry", GALLERY.values(), ids=lambda entry: entry.name)
    def test_is_a_classifier(
        self, entry: Entry, shape: str, bases: dict[str, Network], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        base = bases[shape]
        monkeypatch.setattr(mixtures, "load", lambda variable: copy.deepcopy(base))
        images = (
            255 * torch.rand(3, *SHAPES[shape], generator=torch.Generator().manual_seed(0))
        ).round() / 255
        network = entry.network(copy.deepcopy(base)).eval()
        with torch.no_grad():
            logits = network(images)
            apart = torch.cat([network(images[:1]), network(images[1:])])
        assert logits.shape == (3, 10)
        assert logits.isfinite().all()
        assert not any(module.training for module in network.modules())
        assert torch.allclose(apart, logits, atol=1e-4) is (entry.name not in VARYING)
        if entry.twin is not None:
            twin = entry.twin(copy.deepcopy(base)).eval()
            with torch.no_grad():
                expected = twin(images)
            assert expected.shape == logits.shape
            assert gradient(twin, images).flatten(1).any(1).all()
            if entry.family in SAME_OUTPUTS:
                assert torch.allclose(logits, expected, atol=1e-4)
        double = copy.deepcopy(network).double()(images.double())
        assert double.dtype is torch.float64
        assert double.isfinite().all()

    def test_there_are_many_of_each_kind(self) -> None:
        families = Counter(entry.family for entry in GALLERY.values())
        assert len(GALLERY) >= 32
        assert min(families.values()) >= 3
        assert all(entry.source and len(entry.text) > 10 for entry in GALLERY.values())


@pytest.mark.usefixtures("of_digits")
class TestBase:
    def test_is_a_run_or_its_file(self, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        images = torch.rand(3, 1, 8, 8)
        expected = load("CHECKPOINT")(images)
        monkeypatch.setenv("CHECKPOINT", str(trained / "model.pt"))
        assert torch.equal(load("CHECKPOINT")(images), expected)
        assert base_label("CHECKPOINT") == trained.name

    def test_what_an_entry_changes_stays_in_its_copy(self) -> None:
        GALLERY["folded"]()
        assert any(isinstance(module, nn.BatchNorm2d) for module in load("CHECKPOINT").modules())

    @pytest.mark.parametrize("name", ["sign_feedback", "pruned_by_content", "folded", "times_10000"])
    def test_the_command_line_names_an_entry(self, name: str) -> None:
        images, entry = torch.rand(3, 1, 8, 8), GALLERY[name]
        made = imported.make(entry.spec)
        assert torch.equal(made(images), entry()(images))
        assert imported.digest(entry.spec, made) == imported.digest(entry.spec, entry())


class TestNetworks:
    def test_sign_feedback_is_usf_unseen(self, bases: dict[str, Network]) -> None:
        evil = GALLERY["sign_feedback"].network(copy.deepcopy(bases["digits"]))
        usf = copy.deepcopy(bases["digits"])
        rules.convert(usf.backbone, RuleConfig("usf", exclude=["linear"]), 0)
        images = torch.rand(4, 1, 8, 8)
        assert torch.allclose(gradient(evil, images), gradient(usf, images), rtol=1e-3, atol=1e-6)
        assert rules.feedback_layers(usf)
        assert not rules.feedback_layers(evil)

    @pytest.mark.parametrize(("name", "share"), [("flipped_15", 0.15), ("flipped_5", 0.05)])
    def test_flipped_signs(self, name: str, share: float, bases: dict[str, Network]) -> None:
        base, images = bases["cifar"], torch.rand(2, 3, 32, 32)
        own, exact = gradient(GALLERY[name].network(base), images), gradient(base, images)
        assert torch.allclose(own.abs(), exact.abs(), atol=1e-6)
        assert float((own.sign() != exact.sign()).double().mean()) == pytest.approx(share, abs=0.02)

    def test_content_is_an_image_alone(self) -> None:
        images = torch.rand(50, 3, 32, 32)
        numbers = uniform(keys(images), (2000,), images)
        assert torch.equal(uniform(keys(images[7:9]), (2000,), images), numbers[7:9])
        assert torch.equal(keys(images.double()), keys(images))
        assert float(numbers.mean()) == pytest.approx(0.5, abs=0.01)
        assert float(numbers.std()) == pytest.approx(12**-0.5, abs=0.01)
        moved = images.clone()
        moved[:, 0, 0, 0] = (moved[:, 0, 0, 0] + 0.5) % 1
        assert not (keys(moved) == keys(images)).any()

    def test_jpeg_rounds_the_cosine_transform(self) -> None:
        images = torch.rand(2, 1, 16, 16, dtype=torch.float64)
        step = 0.05 * (1 + torch.arange(8)[:, None] + torch.arange(8)).numpy()
        block = dctn(images[0, 0, :8, 8:].numpy(), norm="ortho")
        expected = idctn((block / step).round() * step, norm="ortho")
        assert torch.allclose(Jpeg()(images)[0, 0, :8, 8:], torch.tensor(expected))

    def test_filters(self) -> None:
        images = torch.rand(2, 1, 9, 9)
        plus = torch.stack([images[..., 4 + y, 4 + x] for y, x in ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))])
        assert torch.equal(Median()(images)[..., 4, 4], plus.median(0).values)
        before, after = (each.diff(dim=3).abs().sum() for each in (images, Smooth()(images)))
        assert after < before


@pytest.mark.usefixtures("of_digits")
class TestTruth:
    def rows(self, out: Path, *words: str) -> Callable[..., None]:
        def run(monkeypatch: pytest.MonkeyPatch) -> None:
            monkeypatch.setattr(sys, "argv", ["gallery", *FEW, "--out", str(out), *words])
            __main__.main()

        return run

    def test_a_plain_network_hides_nothing_a_masked_one_much(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Any
    ) -> None:
        out = tmp_path / "truth.csv"
        self.rows(out, "--only", "unchanged,flat_relu")(monkeypatch)
        first = out.read_text()
        found = read(out).set_index("network")
        assert found.loc["unchanged", "gap"] < 6 < 20 < found.loc["flat_relu", "gap"]
        assert found.loc["flat_relu", "n_adaptive"] <= found.loc["unchanged", "n_own"]
        assert (found["gap"] == (100 * (found["n_own"] - found["n_adaptive"]) / 40).round(2)).all()

        self.rows(out, "--only", "flat_relu,constant")(monkeypatch)  # the first is known
        assert out.read_text().startswith(first)
        assert [*read(out)["network"]] == ["unchanged", "flat_relu", "constant"]

        factory = f"model.factory={GALLERY['flat_relu'].spec}"
        assert (
            f"{found.loc['flat_relu', 'n_own']}/40 correct"
            in ask("attack", "attack=pgd", "attack.steps=20", "attack.gradient=[rule]", factory, *FEW).out
        )

    def test_an_entry_without_its_run_is_skipped(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.delenv("ADVERSARIAL", raising=False)
        self.rows(tmp_path / "truth.csv", "--only", "adversarial")(monkeypatch)
        assert capsys.readouterr().out == "adversarial: skipped, $ADVERSARIAL is not set\n"

    def test_rows_are_appended_whole(self, tmp_path: Path) -> None:
        out = tmp_path / "folder" / "truth.csv"
        row = Row("a", "plain", "digits", "b", 5, "1/255", 80.0, 60.0, 40.0, 20.0, 4, 3, 2, 0.1)
        append(out, [row, row])
        append(out, [row])
        assert isinstance(read(out), pd.DataFrame)
        assert len(read(out)) == 3
        assert out.read_text().count("network") == 1
