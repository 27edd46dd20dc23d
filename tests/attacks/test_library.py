"""APGD, FAB and Square, given the reference's seed, against the reference; what they must leave alone."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from victims import OWN, Labelled, batch_of, gradients, labelled, objective_of, victim_of

from sstune.attacks import (
    ATTACKS,
    Attack,
    AttackedModel,
    GradientSource,
    InvalidAttack,
    check_images,
    check_zero_eps,
    gradient_mode,
    library,
    run_attack,
)
from sstune.backbones import Network
from sstune.composition import compose
from sstune.datasets import Split, Splits
from sstune.schema import ApgdConfig, Draws, Gradient, Norm, RequestError, SquareConfig

NAMES = ["apgd", "apgd_t", "fab_t", "square"]
EPS = {Norm.Linf: 24 / 255, Norm.L2: 0.8}
Converted = Callable[[str], Network]


@pytest.fixture
def test_split(digits: Splits) -> Split:
    """Fewer than elsewhere: nine targets cost nine attacks."""
    return digits.test.take(torch.arange(40))


def make(name: str, seed: int = 0, **fields: Any) -> Attack:
    """With few steps or queries unless told otherwise."""
    if name == "square":
        return ATTACKS[name](SquareConfig(name, ["0"], **{"queries": 40, **fields}), seed)
    return ATTACKS[name](ApgdConfig(name, ["0"], **{"steps": 5, **fields}), seed)


def right_batch(network: nn.Module, split: Split) -> Labelled:
    """The samples that are right."""
    batch = batch_of(split)
    with torch.no_grad():
        return batch.take((~batch.success(network(batch.images))).nonzero().flatten())


def needs_reference() -> Any:
    return pytest.importorskip("pyautoattack", reason="the extra autoattack is not installed")


def theirs(name: str, network: nn.Module, attack: Attack, eps: float, seed: int) -> Any:
    """The reference's stage, at the settings of its standard version but for the number of steps."""
    package, config = needs_reference(), attack.config
    whole = package.AutoAttack(network, norm=config.norm.value, eps=eps, version="standard", seed=seed)
    stages = {"apgd": whole.apgd, "apgd_t": whole.apgd_targeted, "fab_t": whole.fab, "square": whole.square}
    stage = stages[name]
    if isinstance(config, SquareConfig):
        stage.n_queries = config.queries
        return stage
    stage.n_restarts = config.restarts
    if name == "fab_t":
        stage.targeted = True
        stage.n_iter = config.steps
        return stage
    kind, same = type(stage), {"rho": 0.75, "device": "cpu", "eot_iter": config.eot}
    return kind(
        network, config.steps, config.norm.value, config.restarts, eps, seed, logger=whole.logger, **same
    )


def assert_same(found: Tensor, expected: Tensor, slack: float = 1e-6) -> None:
    """All images but a few: products are taken in another order, and a sign may hang on a rounding."""
    assert float((found - expected).abs().amax((1, 2, 3)).quantile(0.95)) <= slack


class TestAgainstTheReference:
    """From the same seed the two are the same computation."""

    def both(
        self, name: str, network: nn.Module, batch: Labelled, norm: Norm, **fields: Any
    ) -> tuple[Tensor, Tensor]:
        attack, eps = make(name, seed=11, norm=norm, **fields), EPS[norm]
        reference = theirs(name, network, attack, eps, seed=11)
        with gradient_mode(network, Gradient.exact):
            found = attack(
                "", AttackedModel(network, eot=attack.config.eot), batch, objective_of(batch), eps
            ).images
            with torch.no_grad(), torch.random.fork_rng([]):
                expected = reference.perturb(batch.images.clone(), batch.targets)
        return found, expected

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("norm", list(Norm))
    def test_the_same_images(self, name: str, norm: Norm, network: Network, test_split: Split) -> None:
        batch = right_batch(network, test_split)
        enough = {"steps": 20} if name == "apgd" else {}  # for three halvings of the step
        found, expected = self.both(name, network, batch, norm, **enough)
        broken = batch.success(network(expected))
        assert 0 < int(broken.sum()) < len(broken)
        assert torch.equal(batch.success(network(found)), broken)
        assert_same(found, expected, 1e-6 if norm is Norm.Linf else 1e-3)

    @pytest.mark.parametrize("name", ["apgd", "apgd_t", "fab_t"])
    def test_restarts(self, name: str, network: Network, test_split: Split) -> None:
        batch = right_batch(network, test_split)
        found, expected = self.both(name, network, batch, Norm.Linf, restarts=3, steps=4)
        assert_same(found, expected)

    @pytest.mark.parametrize("name", ["apgd", "apgd_t"])
    def test_averaged_gradients(self, name: str, network: Network, test_split: Split) -> None:
        batch = right_batch(network, test_split)
        found, expected = self.both(name, network, batch, Norm.Linf, eot=3, steps=4)
        assert_same(found, expected)

    @pytest.mark.parametrize(("n_classes", "targets"), [(4, 3), (10, 9), (13, 9)])
    def test_the_number_of_targets(self, n_classes: int, targets: int) -> None:
        """Counted by gradients, where nothing breaks: one for each step, and APGD's before the first."""
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, n_classes)).eval()
        images = torch.rand(6, 1, 8, 8)
        batch = labelled(images, network(images).argmax(1), None, range(6))
        for name, passes in (("apgd_t", 4), ("fab_t", 3)):
            model = AttackedModel(network)
            make(name, steps=3)("", model, batch, objective_of(batch), 1e-6)
            assert model.n_gradients == targets * passes

    def test_square_on_colour_images_in_l2(self) -> None:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 100, 10)).eval()
        images = torch.rand(20, 3, 10, 10)
        batch = labelled(images, network(images).argmax(1), None, range(20))
        assert_same(*self.both("square", network, batch, Norm.L2))

    def test_defaults_are_the_standard_versions(self) -> None:
        whole = needs_reference().AutoAttack(nn.Identity(), norm="Linf", eps=0.1, seed=0)
        assert compose("attack", ["attack=square"]).attack.queries == whole.square.n_queries  # type: ignore
        for name, stage in (("apgd", whole.apgd), ("apgd_t", whole.apgd_targeted), ("fab_t", whole.fab)):
            config: Any = compose("attack", [f"attack={name}"]).attack
            assert (config.steps, config.restarts) == (stage.n_iter, stage.n_restarts)
        for name in NAMES:
            assert compose("attack", [f"attack={name}"]).attack.batch_size == 250

    @pytest.mark.parametrize("name", ["apgd", "apgd_t", "fab_t"])
    def test_through_a_surrogate_it_is_the_reference_on_that(
        self, name: str, network: Network, other: Network, test_split: Split
    ) -> None:
        """What the surrogate gets wrong is left as it is."""
        victim, attack, eps = victim_of(network, test_split), make(name, seed=11), EPS[Norm.Linf]
        source = GradientSource(Gradient.surrogate, other, "other")
        right = run_attack(victim, attack, source, eps, len(test_split)).robust
        batch = right_batch(network, test_split)
        with torch.no_grad(), torch.random.fork_rng([]):
            images = theirs(name, other, attack, eps, seed=11).perturb(batch.images.clone(), batch.targets)
            assert torch.equal(right[victim.clean], ~batch.success(network(images)))
            wrong = batch.success(other(batch.images))
        assert torch.equal(images[wrong], batch.images[wrong])
        assert 0 < int(right.sum()) < int(victim.clean.sum())


@pytest.mark.parametrize("name", NAMES)
class TestEveryOne:
    @pytest.mark.parametrize("norm", list(Norm))
    @pytest.mark.parametrize("eps", [0.0, 0.1, 1.0])
    def test_images_are_valid(
        self, name: str, norm: Norm, eps: float, network: Network, test_split: Split
    ) -> None:
        batch = right_batch(network, test_split.take(torch.arange(12)))
        with gradient_mode(network, Gradient.exact):
            images = make(name, norm=norm)("", AttackedModel(network), batch, objective_of(batch), eps).images
        check_images(images, batch.images, eps, norm)
        assert not images.requires_grad

    @pytest.mark.parametrize("norm", list(Norm))
    def test_zero_eps_changes_no_judgement(
        self, name: str, norm: Norm, network: Network, test_split: Split
    ) -> None:
        victim = victim_of(network, test_split)
        source = GradientSource(Gradient.exact, network)
        check_zero_eps(victim, make(name, norm=norm), source, 20)
        assert torch.equal(run_attack(victim, make(name, norm=norm), source, 0.0, 20).robust, victim.clean)

    @pytest.mark.parametrize("gradient", OWN)
    def test_process_and_network_are_left_as_they_were(
        self, name: str, gradient: Gradient, converted: Converted, test_split: Split
    ) -> None:
        network = converted("usf")
        batch = right_batch(network, test_split)
        modules: Any = network.backbone
        modules[1].train()
        before, modes = copy.deepcopy(network.state_dict()), [each.training for each in network.modules()]
        random.seed(3), np.random.seed(3), torch.manual_seed(3)
        numpy_state: Any = np.random.get_state()
        torch_state, python_state = torch.get_rng_state(), random.getstate()
        with gradient_mode(network, gradient):  # called as it is: run_attack() keeps some of this, too
            make(name)("", AttackedModel(network), batch, objective_of(batch), 0.1)
        assert torch.equal(torch.get_rng_state(), torch_state)
        assert random.getstate() == python_state
        after: Any = np.random.get_state()
        assert after[2:] == numpy_state[2:]
        assert np.array_equal(after[1], numpy_state[1])
        assert [each.training for each in network.modules()] == modes
        assert torch.is_grad_enabled()
        for key, value in network.state_dict().items():
            assert torch.equal(value, before[key])
        assert all(each.grad is None and each.requires_grad for each in network.parameters())

    def test_is_the_same_again_and_other_for_another_seed(
        self, name: str, network: Network, test_split: Split
    ) -> None:
        batch = right_batch(network, test_split)
        found = make(name)("", AttackedModel(network), batch, objective_of(batch), 0.1).images
        torch.manual_seed(99)
        assert torch.equal(
            make(name)("", AttackedModel(network), batch, objective_of(batch), 0.1).images, found
        )
        if name == "fab_t":  # draws nothing for its first start
            return
        assert not torch.equal(
            make(name, seed=1)("", AttackedModel(network), batch, objective_of(batch), 0.1).images, found
        )

    @pytest.mark.parametrize("n", [1, 2])
    def test_few_samples_and_none_that_is_right(
        self, name: str, n: int, network: Network, test_split: Split
    ) -> None:
        batch = right_batch(network, test_split).take(torch.arange(n))
        for wrong in range(n + 1):
            labels = batch.targets.clone()
            labels[:wrong] = (labels[:wrong] + 1) % 10
            mixed = labelled(batch.images, labels, None, batch.samples)
            attempt = make(name)("", AttackedModel(network), mixed, objective_of(mixed), 0.4)
            assert torch.equal(attempt.images[:wrong], batch.images[:wrong])
            assert mixed.success(network(attempt.images))[:wrong].all()

    def test_memory_format_is_no_matter(self, name: str, test_split: Split, network: Network) -> None:
        colour = nn.Sequential(nn.Conv2d(3, 1, 1), network).eval()
        images = torch.rand(10, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        labels = colour(images).argmax(1)
        found = [
            make(name, norm=Norm.L2)(
                "",
                AttackedModel(colour),
                labelled(each, labels, None, range(10)),
                objective_of(labelled(each, labels, None, range(10))),
                0.5,
            ).images
            for each in (images, images.to(memory_format=torch.channels_last))
        ]
        assert torch.equal(*found)

    def test_a_network_without_parameters(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        class Pixels(nn.Module):
            def forward(self, images: Tensor) -> Tensor:
                return images.flatten(1)[:, :5]

        images = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        batch = labelled(images, images.flatten(1)[:, :5].argmax(1), None, range(6))
        attempt = make(name)("", AttackedModel(Pixels()), batch, objective_of(batch), 0.5)
        assert batch.success(Pixels()(attempt.images)).any()
        assert capsys.readouterr().out == ""

    def test_a_gradient_of_zero_breaks_nothing_and_is_no_nan(self, name: str, test_split: Split) -> None:
        class Flat(nn.Module):
            def forward(self, images: Tensor) -> Tensor:
                return (images.flatten(1)[:, :10] * 0 + torch.arange(10.0)) / 10

        batch = batch_of(test_split)
        batch = labelled(batch.images, torch.full_like(batch.targets, 9), None, batch.samples)
        for norm in Norm:
            images = make(name, norm=norm)("", AttackedModel(Flat()), batch, objective_of(batch), 0.3).images
            assert torch.equal(images, batch.images)


class TestGradients:
    @pytest.mark.parametrize("name", ["apgd", "apgd_t", "fab_t"])
    def test_the_exact_one_of_a_converted_network_is_the_plain_networks(
        self, name: str, network: Network, converted: Converted, test_split: Split
    ) -> None:
        outcomes = {}
        for gradient, each in [(Gradient.exact, network), *((g, converted("fa")) for g in OWN)]:
            victim = victim_of(each, test_split)
            outcomes[each is network, gradient] = run_attack(
                victim, make(name), GradientSource(gradient, each), 0.1, 40
            )
        plain = outcomes[True, Gradient.exact].robust
        assert torch.equal(outcomes[False, Gradient.exact].robust, plain)
        assert int(outcomes[False, Gradient.rule].robust.sum()) > int(plain.sum())

    @pytest.mark.parametrize("name", ["apgd", "apgd_t"])
    def test_feedback_is_drawn_once_for_all_gradients_of_a_step(
        self, name: str, converted: Converted, test_split: Split
    ) -> None:
        """One draw before each step and one before the first, whatever passes are made besides."""
        network, eot, steps = converted("brsf"), 3, 4
        batch = right_batch(network, test_split.take(torch.arange(12)))
        model = AttackedModel(network, Draws.step, eot, ("key",))
        seen: list[Tensor] = []

        def observe(images: Tensor, outputs: Tensor) -> None:
            if torch.is_grad_enabled() and len(images) == len(batch.targets):
                seen.append(gradients(network, batch.images, batch.targets))

        model.observe = observe
        with gradient_mode(network, Gradient.rule):
            make(name, steps=steps, eot=eot)("", model, batch, objective_of(batch), 1e-4)  # breaks nothing
        runs = 9 if name == "apgd_t" else 1
        assert len(seen) == runs * (steps + 1) * eot
        draws = torch.stack(seen).unflatten(0, (-1, eot))
        assert torch.equal(draws[:, 0], draws[:, 1])
        assert torch.equal(draws[:, 0], draws[:, 2])
        assert all(not torch.equal(one, two) for one, two in zip(draws[:-1, 0], draws[1:, 0], strict=True))

    def test_feedback_is_never_drawn_for_scores(self, converted: Converted, test_split: Split) -> None:
        network = converted("brsf")
        model = AttackedModel(network, Draws.forward)
        make("square")(
            "", model, right_batch(network, test_split), objective_of(right_batch(network, test_split)), 0.1
        )
        assert model.n_gradients == 0


class TestSquare:
    @given(st.integers(1, 12), st.integers(1, 40), st.sampled_from(list(Norm)), st.integers(0, 3))
    @settings(max_examples=25, deadline=None)
    def test_effort_is_the_query_that_broke_a_sample(
        self, n: int, queries: int, norm: Norm, wrong: int
    ) -> None:
        """Every image is kept with the query it was stage of, and looked up afterwards."""
        torch.manual_seed(n)
        network = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval()
        images = torch.rand(n, 3, 8, 8)
        labels = network(images).argmax(1)
        labels[:wrong] = (labels[:wrong] + 1) % 5
        batch = labelled(images, labels, None, range(n))
        if norm is Norm.L2:
            needs_reference()
        asked: list[Tensor] = []

        class Spy(nn.Sequential):
            def forward(self, x: Tensor) -> Tensor:
                asked.append(x.clone())
                return super().forward(x)

        attempt = make("square", norm=norm, queries=queries)(
            "", AttackedModel(Spy(*network)), batch, objective_of(batch), 0.05
        )
        broken = batch.success(network(attempt.images))
        assert torch.equal(attempt.steps_to_success >= 0, broken & (torch.arange(n) >= wrong))
        assert int(attempt.steps_to_success.max()) <= queries + 1
        made = asked[2:]  # two passes of the clean images before
        for index in (attempt.steps_to_success >= 0).nonzero().flatten().tolist():
            effort = int(attempt.steps_to_success[index])
            at_once = (made[effort - 1] - attempt.images[index]).abs().amax((1, 2, 3))
            assert float(at_once.min()) == 0  # shown to the network in that query, and kept
            for shown in made[: effort - 1]:
                row = (shown - images[index]).abs().amax((1, 2, 3)).argmin()
                assert network(shown[row : row + 1]).argmax(1) == labels[index]

    def test_without_its_extra_l2_says_how_to_get_it(
        self, network: Network, test_split: Split, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "pyautoattack", None)
        with pytest.raises(RequestError, match=r'square in L2 .* pip install "sstune\[autoattack\]"$'):
            make("square", norm=Norm.L2)(
                "", AttackedModel(network), batch_of(test_split), objective_of(batch_of(test_split)), 0.1
            )

    @pytest.mark.parametrize(("height", "width", "fits"), [(8, 8, True), (8, 9, True), (8, 16, False)])
    def test_images_too_long_are_refused(self, height: int, width: int, fits: bool) -> None:
        network = nn.Sequential(nn.Flatten(), nn.Linear(height * width, 4))
        images = torch.rand(2, 1, height, width)
        batch = labelled(images, network(images).argmax(1), None, range(2))
        if fits:
            make("square")("", AttackedModel(network), batch, objective_of(batch), 0.1)
        else:
            with pytest.raises(RequestError, match=r"square in Linf is not for images of 8x16 pixels"):
                make("square")("", AttackedModel(network), batch, objective_of(batch), 0.1)

    @pytest.mark.parametrize("norm", list(Norm))
    @pytest.mark.parametrize("size", [3, 4, 5, 8, 9, 10, 12, 14, 15, 16, 18, 24, 28, 32])
    def test_images_that_the_search_cannot_begin_on_are_refused(self, size: int, norm: Norm) -> None:
        """And no others."""
        network = nn.Sequential(nn.Flatten(), nn.Linear(size * size, 4))
        images = torch.rand(2, 1, size, size)
        batch = labelled(images, network(images).argmax(1), None, range(2))
        attack: Any = make("square", norm=norm)
        model = AttackedModel(network)
        try:
            with torch.no_grad(), torch.random.fork_rng([]):
                attack.made(model, network(images), 0.1)(images, batch.targets)
        except (RuntimeError, ZeroDivisionError):
            with pytest.raises(RequestError, match=rf"in {norm} is not for images of {size}x{size} pixels$"):
                attack("", model, batch, objective_of(batch), 0.1)
        else:
            attack("", model, batch, objective_of(batch), 0.1)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_fewer_than_four_classes(n_classes: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, n_classes)).eval()
    images = torch.rand(10, 1, 8, 8)
    batch = labelled(images, network(images).argmax(1), None, range(10))
    with pytest.raises(
        RequestError, match=rf"apgd_t needs 4 classes or more, here are {n_classes}; use apgd"
    ):
        make("apgd_t")("", AttackedModel(network), batch, objective_of(batch), 0.5)
    for name in ("apgd", "fab_t", "square"):
        assert batch.success(
            network(make(name)("", AttackedModel(network), batch, objective_of(batch), 0.5).images)
        ).any()


def test_an_image_out_of_the_ball_is_caught(network: Network, test_split: Split) -> None:
    """Another library's images are checked like any."""

    class Further(library.Apgd):
        def __call__(self, stage: str, model: AttackedModel, batch: Any, objective: Any, eps: float) -> Any:
            return super().__call__(stage, model, batch, objective, eps * 1.5)

    attack = Further(ApgdConfig("apgd", ["0"], steps=3), 0)
    with pytest.raises(InvalidAttack, match="D0: "):
        run_attack(victim_of(network, test_split), attack, GradientSource(Gradient.exact, network), 0.1, 40)
