"""``attack=autoattack`` against a direct call of its authors' package, sample by sample."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from victims import batch_of, labelled, objective_of, stopped, victim_of

from sstune.attacks import (
    AttackedModel,
    AttackResult,
    GradientSource,
    check_zero_eps,
    gradient_mode,
    run_attack,
)
from sstune.attacks.autoattack import Autoattack
from sstune.backbones import Network
from sstune.datasets import Split, Splits
from sstune.schema import Gradient, LibraryConfig, Norm, RequestError

package = pytest.importorskip("pyautoattack", reason="the extra autoattack is not installed")

STEPS, QUERIES, SEED, BATCH = 4, 30, 5, 25
EPS = {Norm.Linf: 24 / 255, Norm.L2: 0.8}


@pytest.fixture
def test_split(digits: Splits) -> Split:
    return digits.test.take(torch.arange(60))


class Short(Autoattack):
    """With few steps, and the images that it makes are kept by sample."""

    def __init__(self, config: LibraryConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.steps, self.queries = STEPS, QUERIES
        self.kept: dict[int, Tensor] = {}
        self.batches: list[tuple[str, int]] = []

    def __call__(
        self, stage: str, model: AttackedModel, batch: Any, objective: Any, eps: float
    ) -> AttackResult:
        attempt = super().__call__(stage, model, batch, objective, eps)
        self.batches.append((stage, len(batch.samples)))
        self.kept |= dict(zip(map(int, batch.samples), attempt.images, strict=True))
        return attempt


def short(norm: Norm = Norm.Linf, seed: int = SEED) -> Short:
    return Short(LibraryConfig("autoattack", ["0"], norm=norm), seed)


def direct(network: nn.Module, split: Split, norm: Norm, eps: float) -> tuple[Tensor, Tensor]:
    """Which samples stay right, and the images, by ``run_standard_evaluation``."""
    library = package.AutoAttack(network, norm=norm.value, eps=eps, version="standard", seed=SEED)
    for attack in (library.apgd, library.apgd_targeted, library.fab):
        attack.n_iter = STEPS
    library.square.n_queries = QUERIES
    batch = batch_of(split)
    with gradient_mode(network, Gradient.exact), torch.random.fork_rng([]):
        images, predicted = library.run_standard_evaluation(batch.images, batch.targets, batch_size=BATCH)
    return predicted == batch.targets, images


@pytest.mark.parametrize("norm", list(Norm))
@pytest.mark.parametrize("strength", [0.5, 1.0, 3.0])
def test_equals_a_direct_call(norm: Norm, strength: float, network: Network, test_split: Split) -> None:
    eps, attack = strength * EPS[norm], short(norm)
    right, images = direct(network, test_split, norm, eps)
    outcome = run_attack(
        victim_of(network, test_split), attack, GradientSource(Gradient.exact, network), eps, BATCH
    )
    assert torch.equal(outcome.robust, right)
    assert (int(right.sum()) == 0) == (strength == 3.0)
    found = batch_of(test_split).images.clone()
    for sample, image in attack.kept.items():
        found[sample] = image
    assert torch.equal(found, images)


def test_the_parts_are_the_standard_versions_at_its_settings() -> None:
    library = package.AutoAttack(nn.Identity(), norm="Linf", eps=0.1, version="standard", seed=SEED)
    attack = Autoattack(LibraryConfig("autoattack", ["0"]), SEED)
    assert list(attack.stages) == library.attacks_to_run
    ours = attack.standard(AttackedModel(nn.Identity()), 10, 0.1, "cpu")
    for name in ("apgd", "apgd_targeted", "fab", "square"):
        theirs, found = vars(getattr(library, name)), vars(getattr(ours, name))
        simple = {key for key, value in theirs.items() if isinstance(value, (int, float, str, type(None)))}
        assert len(simple) > 8
        assert {key for key in simple if found[key] != theirs[key]} <= {"targeted"}  # set when it is run


def test_the_gradient_is_the_one_asked_for(converted: Callable[[str], Network], test_split: Split) -> None:
    network = converted("fa")
    kept = {
        gradient: int(
            run_attack(
                victim_of(network, test_split), short(), GradientSource(gradient, network), 0.1, 60
            ).robust.sum()
        )
        for gradient in (Gradient.rule, Gradient.exact)
    }
    assert kept[Gradient.rule] > kept[Gradient.exact]


class TestResuming:
    @pytest.mark.parametrize("stop", [1, 2, 4, 5])
    def test_goes_on_after_any_batch(self, stop: int, network: Network, test_split: Split) -> None:
        """Killed after so many batches; from there each batch is attacked once, and all ends the same."""

        victim, source = victim_of(network, test_split), GradientSource(Gradient.exact, network)
        whole, first, second = short(), short(), short()
        expected = run_attack(victim, whole, source, 0.07, BATCH)
        found = run_attack(
            victim, second, source, 0.07, BATCH, stopped(victim, first, source, 0.07, BATCH, stop)
        )
        assert first.batches + second.batches == whole.batches
        assert torch.equal(found.robust, expected.robust)
        assert first.kept | second.kept != {}
        for sample, image in whole.kept.items():
            assert torch.equal((first.kept | second.kept)[sample], image)


def test_zero_eps_and_nothing_right(network: Network, test_split: Split) -> None:
    source = GradientSource(Gradient.exact, network)
    for norm in Norm:
        attack = Autoattack(LibraryConfig("autoattack", ["0"], norm=norm), 0)
        assert (attack.with_tiny_budget().steps, attack.with_tiny_budget().queries) == (2, 2)
        assert (attack.steps, attack.queries) == (100, 5000)
        check_zero_eps(victim_of(network, test_split), attack, source, 250)
    nothing = victim_of(network, test_split, clean=torch.zeros(60, dtype=torch.bool))
    assert not run_attack(nothing, short(), source, 0.1, 60).robust.any()


@pytest.mark.parametrize("n_classes", [2, 3, 4, 6])
def test_fewer_than_ten_classes(n_classes: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, n_classes)).eval()
    images = torch.rand(10, 1, 8, 8)
    batch = labelled(images, network(images).argmax(1), None, range(10))
    for stage in Autoattack.stages:
        if n_classes < 4:
            with pytest.raises(RequestError, match=f"needs 4 classes or more, here are {n_classes}"):
                short()(stage, AttackedModel(network), batch, objective_of(batch), 0.3)
        else:
            assert batch.success(
                network(short()(stage, AttackedModel(network), batch, objective_of(batch), 0.6).images)
            ).any()


def test_state_and_log_are_left_alone(
    network: Network, test_split: Split, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with caplog.at_level(logging.WARNING), gradient_mode(network, Gradient.exact):
        for stage in Autoattack.stages:
            short()(
                stage, AttackedModel(network), batch_of(test_split), objective_of(batch_of(test_split)), 0.1
            )
    assert torch.equal(torch.get_rng_state(), state)
    assert caplog.text == ""


class TestAsACommand:
    """On a network of somebody else's: each digit's class by the nearest class mean."""

    asked = ("attack=autoattack", "model.factory=means:make", "attack.n=20", "threads=1", "device=cpu")

    @pytest.fixture(autouse=True)
    def module(self, tmp_path: Path) -> None:
        (tmp_path / "means.py").write_text(
            """
import torch
from sklearn.datasets import load_digits

def make():
    digits = load_digits()
    images, labels = torch.tensor(digits.images).flatten(1).float() / 16, torch.tensor(digits.target)
    means = torch.stack([images[labels == label].mean(0) for label in range(10)])
    layer = torch.nn.Linear(64, 10)
    layer.weight.data, layer.bias.data = means, -means.square().sum(1) / 2
    return torch.nn.Sequential(torch.nn.Flatten(), layer)
"""
        )

    def test_its_row(self, ask: Callable[..., Any], tmp_path: Path) -> None:
        assert ask("attack", *self.asked, "attack.gradient=[exact]", "attack.eps=[4/255,128/255]").status == 0
        (path,) = tmp_path.glob("runs/**/result.json")
        row = json.loads(path.read_text())
        clean, small, large = (each["correct"] for each in row["measurements"])
        assert clean > small > large == 0
        assert row["versions"]["pyautoattack"] == package.__version__
        assert row["config"]["attack"]["batch_size"] == 250

    def test_without_the_extra_one_line_says_how_to_get_it(
        self, ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "pyautoattack", None)
        answer = ask("attack", *self.asked)
        assert answer.status == 2
        assert len(answer.errors) == 1
        assert answer.errors[0].endswith(
            'autoattack needs one more package: pip install "sstune[autoattack]"'
        )
