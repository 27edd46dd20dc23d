"""The network as an attack sees it: when random feedback is drawn, and what is hidden from torchattacks."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchattacks
from torch import Tensor, nn
from victims import OWN, batch_of, gradients, make, objective_of

from sstune import rules
from sstune.attacks import AttackedModel, GradientSource, gradient_mode
from sstune.attacks.ascent import loss_gradient
from sstune.backbones import Network
from sstune.datasets import Split
from sstune.rules import begin_step
from sstune.schema import AttackLoss, Compile, Draws, Gradient
from sstune.seeding import seed_from
from sstune.training.forward import compiled

ULP = 1e-7  # of pixels near 1
Converted = Callable[[str], Network]


def magnitudes(network: nn.Module) -> list[Tensor]:
    feedbacks: list[Any] = [layer.feedback for layer in rules.feedback_layers(network).values()]
    return [feedback.magnitude.clone() for feedback in feedbacks]


def used(model: AttackedModel, split: Split, n: int) -> list[Tensor]:
    """The first layer's magnitudes after each of ``n`` gradients."""
    found = []
    for _ in range(n):
        gradients(model, split.images / 255, split.targets)
        found.append(magnitudes(model.network)[0])
    return found


def distinct(tensors: list[Tensor]) -> list[int]:
    """Each tensor's number, where equal ones have the same."""
    seen: list[Tensor] = []
    for tensor in tensors:
        if not any(torch.equal(tensor, other) for other in seen):
            seen.append(tensor)
    return [next(i for i, other in enumerate(seen) if torch.equal(tensor, other)) for tensor in tensors]


class TestDraws:
    """Of brsf."""

    @pytest.mark.parametrize(
        ("draws", "eot", "expected"),
        [
            (Draws.frozen, 1, [0, 0, 0, 0, 0, 0]),
            (Draws.frozen, 3, [0, 0, 0, 0, 0, 0]),
            (Draws.step, 1, [0, 1, 2, 3, 4, 5]),
            (Draws.step, 3, [0, 0, 0, 1, 1, 1]),
            (Draws.forward, 1, [0, 1, 2, 3, 4, 5]),
            (Draws.forward, 3, [0, 1, 2, 3, 4, 5]),
        ],
    )
    def test_come_when_they_should(
        self, draws: Draws, eot: int, expected: list[int], converted: Converted, test_split: Split
    ) -> None:
        network = converted("brsf")
        trained = magnitudes(network)[0]
        with gradient_mode(network, Gradient.rule):
            found = used(AttackedModel(network, draws, eot), test_split, len(expected))
        assert distinct(found) == expected
        assert torch.equal(found[0], trained) == (draws is Draws.frozen)

    def test_are_named_by_the_key_and_their_number(self, converted: Converted, test_split: Split) -> None:
        network = converted("brsf")
        with gradient_mode(network, Gradient.rule):
            found = used(AttackedModel(network, Draws.forward, 1, (3, "restart 1")), test_split, 3)
            for i, magnitude in enumerate(found):
                rules.redraw(network, seed_from("attack", 3, "restart 1", i))
                assert torch.equal(magnitudes(network)[0], magnitude)
            other = used(AttackedModel(network, Draws.forward, 1, (3, "restart 2")), test_split, 3)
        assert distinct([*found, *other]) == list(range(6))

    def test_do_not_depend_on_the_past(self, converted: Converted, test_split: Split) -> None:
        new, old = converted("brsf"), converted("brsf")
        for _ in range(3):
            begin_step(old)
        found = []
        for network in (new, old):
            with gradient_mode(network, Gradient.rule):
                used(AttackedModel(network, Draws.forward, 1, ("other",)), test_split, network is old)
                found.append(used(AttackedModel(network, Draws.forward, 1, ("key",)), test_split, 2))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))

    def test_questions_without_a_gradient_draw_nothing(self, converted: Converted, test_split: Split) -> None:
        network = converted("brsf")
        model = AttackedModel(network, Draws.forward)
        before = magnitudes(network)
        with gradient_mode(network, Gradient.rule), torch.no_grad():
            model(test_split.images / 255)
            assert all(torch.equal(a, b) for a, b in zip(before, magnitudes(network), strict=True))
        assert model.n_gradients == 0

    @pytest.mark.parametrize("draws", Draws)
    @pytest.mark.parametrize("name", ["bp", "usf", "frsf", "fa"])
    def test_of_other_rules_there_are_none(
        self, name: str, draws: Draws, converted: Converted, test_split: Split
    ) -> None:
        network, batch = converted(name), batch_of(test_split)
        before = copy.deepcopy(network.state_dict())
        with gradient_mode(network, Gradient.rule):
            expected = gradients(network, batch.images, batch.targets)
            for eot in (1, 2):
                model = AttackedModel(network, draws, eot)
                _, found = loss_gradient(model, batch.images, objective_of(batch, AttackLoss.ce))
                assert torch.equal(found, expected)
            after: dict[str, Any] = network.state_dict()
            for key, value in before.items():
                assert torch.equal(after[key], value) if isinstance(value, Tensor) else after[key] == value

    def test_make_attacks_differ(self, converted: Converted, test_split: Split) -> None:
        network, batch = converted("brsf"), batch_of(test_split)
        attack = make("pgd", steps=3, random_start=False, early_exit=False)
        found = []
        with gradient_mode(network, Gradient.rule):
            for draws, eot in ((Draws.frozen, 1), (Draws.step, 2), (Draws.forward, 2)):
                model = AttackedModel(network, draws, eot, ("key",))
                found.append(attack("restart 0", model, batch, objective_of(batch), 0.1).images)
        assert distinct(found) == [0, 1, 2]


class TestView:
    def test_makes_a_subject_of_its_network(self, converted: Converted, test_split: Split) -> None:
        network, batch = converted("brsf"), batch_of(test_split)
        model = GradientSource(Gradient.rule, network, draws=Draws.step, eot=2).model(3, "restart 1")
        assert (model.network, model.draws, model.eot) == (network, Draws.step, 2)
        assert model.key == (3, "restart 1")
        assert torch.equal(model(batch.images), network(batch.images))

    def test_may_compute_outputs_by_other_means(self, network: Network, test_split: Split) -> None:
        asked = []

        def compiled(images: Tensor) -> Tensor:
            asked.append(len(images))
            return network(images)

        model = GradientSource(Gradient.exact, network, forward=compiled).model()
        batch = batch_of(test_split)
        expected = gradients(network, batch.images, batch.targets)
        assert torch.equal(gradients(model, batch.images, batch.targets), expected)
        assert asked == [len(test_split)]

    @pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler, g++")
    def test_may_be_compiled(self, converted: Converted, test_split: Split) -> None:
        """One compiled network yields each of its two gradients, where that is asked for."""
        torch._dynamo.reset()
        network, batch = converted("usf"), batch_of(test_split)
        forward = compiled(network, Compile.default, torch.device("cpu"), any_batch=True)
        of_rule_and_exact = []
        for gradient in OWN:
            with gradient_mode(network, gradient):
                expected = gradients(network, batch.images, batch.targets)
                model = GradientSource(gradient, network, forward=forward).model()
                found = gradients(model, batch.images, batch.targets)
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
            of_rule_and_exact.append(found)
        assert not torch.allclose(*of_rule_and_exact, rtol=0.1)

    def test_shows_an_observer_every_question(self, network: Network, test_split: Split) -> None:
        model, seen = GradientSource(Gradient.exact, network).model(), []
        model.observe = lambda images, outputs: seen.append((images, outputs))
        batch = batch_of(test_split)
        gradients(model, batch.images, batch.targets)
        with torch.no_grad():
            model(batch.images[:3])
        assert [len(images) for images, _ in seen] == [len(test_split), 3]
        for images, outputs in seen:
            assert torch.equal(outputs, network(images))
            assert not outputs.requires_grad


class RobModel(Network):
    """The class name that makes torchattacks 3.5 look for ``mean`` and ``std``, and normalise by them."""


class TestTrapsOfTorchattacks:
    """A second normalisation, and a network that is put back into train mode."""

    def test_they_exist(self, network: Network, test_split: Split) -> None:
        """If this fails, torchattacks has changed, and the tests around it show less than they say."""
        batch = batch_of(test_split)
        expected = (batch.images + 0.1 * gradients(network, batch.images, batch.targets).sign()).clamp(0, 1)
        network.__class__ = RobModel
        network.mean, network.std = network.mean.flatten(), network.std.flatten()
        trapped = torchattacks.FGSM(network, eps=0.1)
        assert float((trapped(batch.images, batch.targets) - expected).abs().max()) > 0.05
        wrapped = nn.Sequential(network.eval())  # in train mode itself, as every new module
        torchattacks.FGSM(wrapped, eps=0.1)(batch.images, batch.targets)
        assert network.training

    @pytest.mark.parametrize("kind", [Network, RobModel])
    def test_a_subject_avoids_them(self, kind: type, network: Network, test_split: Split) -> None:
        batch = batch_of(test_split)
        expected = (batch.images + 0.1 * gradients(network, batch.images, batch.targets).sign()).clamp(0, 1)
        network.__class__ = kind
        found = torchattacks.FGSM(AttackedModel(network), eps=0.1)(batch.images, batch.targets)
        assert float((found - expected).abs().max()) <= ULP
        assert not any(module.training for module in network.modules())

    def test_its_constants_are_hidden(self, network: Network) -> None:
        assert not hasattr(AttackedModel(network), "mean")
        assert not hasattr(AttackedModel(network), "std")

    @pytest.mark.parametrize("name", ["fgsm", "pgd", "mifgsm"])
    def test_an_attack_leaves_every_mode_and_number_as_it_was(
        self, name: str, network: Network, test_split: Split
    ) -> None:
        attack = make(name)
        state = {key: value.clone() for key, value in network.state_dict().items()}
        attack(
            attack.stages[0],
            AttackedModel(network),
            batch_of(test_split),
            objective_of(batch_of(test_split)),
            0.1,
        )
        assert not any(module.training for module in network.modules())
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


class TestAttackedThrough:
    """Modes, requires_grad, weights, gradients, feedback and its draws are as before, whatever happens."""

    @pytest.fixture(params=["step", "forward"])
    def peculiar(self, request: pytest.FixtureRequest, converted: Converted) -> Network:
        """brsf in train mode but for one module, and with one frozen parameter."""
        network = converted(f"brsf-{request.param}")
        begin_step(network)
        network.train()
        modules: Any = network.backbone
        modules[1].eval()
        modules[0].weight.requires_grad_(False)
        return network

    @staticmethod
    def assert_same(network: Network, before: Network) -> None:
        for (name, module), other in zip(network.named_modules(), before.modules(), strict=True):
            assert module.training == other.training, name
        for (name, parameter), other_ in zip(network.named_parameters(), before.parameters(), strict=True):
            assert parameter.requires_grad == other_.requires_grad, name
            assert parameter.grad is None, name
        state, expected = network.state_dict(), before.state_dict()  # with the numbers of draws
        for key, value in expected.items():
            assert torch.equal(state[key], value) if isinstance(value, Tensor) else state[key] == value
        network.eval(), before.eval()  # and the gradient that is in use, and the draws to come
        images = torch.rand(2, 1, 8, 8)
        found = []
        for each in (network, before):
            begin_step(each)
            x = images.clone().requires_grad_()
            each(x).sum().backward()
            found.append(x.grad)
        assert torch.equal(*found)

    @pytest.mark.parametrize("gradient", [*OWN, Gradient.none])
    @pytest.mark.parametrize("draws", Draws)
    @pytest.mark.parametrize("name", ["fgsm", "pgd", "mifgsm"])
    def test_after_an_attack(
        self, name: str, draws: Draws, gradient: Gradient, peculiar: Network, test_split: Split
    ) -> None:
        before, attack = copy.deepcopy(peculiar), make(name)
        with gradient_mode(peculiar, gradient):
            assert not any(module.training for module in peculiar.modules())
            assert not any(parameter.requires_grad for parameter in peculiar.parameters())
            attack(
                attack.stages[0],
                AttackedModel(peculiar, draws, 2),
                batch_of(test_split),
                objective_of(batch_of(test_split)),
                0.1,
            )
        self.assert_same(peculiar, before)

    @pytest.mark.parametrize("gradient", OWN)
    def test_after_an_exception(self, gradient: Gradient, peculiar: Network) -> None:
        before = copy.deepcopy(peculiar)
        with pytest.raises(TypeError), gradient_mode(peculiar, gradient):
            AttackedModel(peculiar, Draws.forward)("no images")  # type: ignore[arg-type]
        self.assert_same(peculiar, before)
