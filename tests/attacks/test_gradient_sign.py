"""FGSM and PGD against torchattacks' own, and against the loop written out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchattacks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sstune.attacks import ATTACKS, attacked_through
from sstune.attacks.gradient_sign import Fgsm, Pgd, Recorded, project
from sstune.backbones import Network
from sstune.datasets import Split
from sstune.schema import AttackConfig, Gradient, PgdConfig, RequestError

ULP = 1e-7  # of pixels near 1
RULES = ["bp", "usf", "frsf", "brsf", "fa"]
Converted = Callable[[str], Network]


class Bare(nn.Module):
    """The network without attributes that torchattacks might look at."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.eval()  # torchattacks puts it, and all below, back into the mode it finds here

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.network(images)
        return outputs


def pgd(**fields: Any) -> Pgd:
    return Pgd(PgdConfig(name="pgd", eps=["8/255"], **fields), seed=0)


def fgsm() -> Fgsm:
    return Fgsm(AttackConfig(name="fgsm", eps=["8/255"]), seed=0)


def tensors(split: Split) -> tuple[Tensor, Tensor, list[int]]:
    return split.images / 255, split.labels, list(range(len(split)))


def gradient_sign(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    images = images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(network(images), labels, reduction="sum"), images)
    return gradient.sign()


def iterates(
    network: nn.Module, images: Tensor, labels: Tensor, start: Tensor, eps: float, step: float, n: int
) -> list[Tensor]:
    """The start and every projected step of each sample, whether it breaks or not."""
    found = [start]
    for _ in range(n):
        moved = found[-1] + step * gradient_sign(network, found[-1], labels)
        low, high = (images - eps).clamp(0, 1), (images + eps).clamp(0, 1)
        found.append(torch.minimum(torch.maximum(moved, low), high))
    return found


class TestFgsm:
    @pytest.mark.parametrize("name", RULES)
    @pytest.mark.parametrize("gradient", list(Gradient))
    @pytest.mark.parametrize("eps", [1 / 255, 8 / 255, 0.3, 1.0])
    def test_equals_torchattacks_and_the_formula(
        self, name: str, gradient: Gradient, eps: float, converted: Converted, test_split: Split
    ) -> None:
        network = converted(name)
        images, labels, samples = tensors(test_split)
        with attacked_through(network, gradient):
            adversarial = fgsm()(network, images, labels, eps, samples)
            theirs = torchattacks.FGSM(Bare(network), eps=eps)(images, labels)
            formula = (images + eps * gradient_sign(network, images, labels)).clamp(0, 1)
        assert float((adversarial - theirs).abs().max()) <= ULP
        assert float((adversarial - formula).abs().max()) <= ULP
        assert float((adversarial - images).abs().max()) <= eps + ULP


class TestPgd:
    @pytest.mark.parametrize("name", RULES)
    @pytest.mark.parametrize("random_start", [True, False])
    def test_equals_torchattacks_where_nothing_breaks(
        self, name: str, random_start: bool, converted: Converted, test_split: Split
    ) -> None:
        network, (images, labels, _) = converted(name), tensors(test_split)
        eps, steps = 16 / 255, 7
        attack = pgd(steps=steps, step_size="eps/3")
        theirs = torchattacks.PGD(
            Bare(network), eps=eps, alpha=eps / 3, steps=steps, random_start=random_start
        )
        start = images.clone()
        if random_start:  # as torchattacks draws it
            torch.manual_seed(7)
            start = (images + torch.empty_like(images).uniform_(-eps, eps)).clamp(0, 1)
        with attacked_through(network, Gradient.rule):
            adversarial, broken = attack.descend(network, images, labels, start, eps)
            torch.manual_seed(7)
            expected = theirs(images, labels)
        kept = ~broken
        assert int(kept.sum()) >= 20
        assert float((adversarial - expected).abs()[kept].max()) <= 2 * ULP

    @pytest.mark.parametrize("name", ["bp", "usf"])
    @pytest.mark.parametrize("gradient", list(Gradient))
    def test_keeps_the_first_iterate_that_breaks_a_sample(
        self, name: str, gradient: Gradient, converted: Converted, test_split: Split
    ) -> None:
        network, (images, labels, samples) = converted(name), tensors(test_split)
        eps, steps = 40 / 255, 10
        attack = pgd(steps=steps, step_size="eps/2")
        start = attack.start(images, eps, samples, restart=0)
        with attacked_through(network, gradient), torch.no_grad():
            with torch.enable_grad():
                adversarial, broken = attack.descend(network, images, labels, start, eps)
                path = iterates(network, images, labels, start, eps, eps / 2, steps)
            wrong = torch.stack([network(x).argmax(1) != labels for x in path])
        first = torch.where(wrong.any(0), wrong.int().argmax(0), steps)
        expected = torch.stack(path)[first, torch.arange(len(images))]
        assert float((adversarial - expected).abs().max()) <= 2 * ULP
        assert torch.equal(broken, wrong.any(0))
        assert len(first.unique()) > 3  # samples broke at different steps

    def test_a_success_that_a_later_step_undoes_counts(self, test_split: Split) -> None:
        """The network is wrong on one narrow interval only, which the last step leaves again."""

        class Narrow(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.ones(()))

            def forward(self, x: Tensor) -> Tensor:
                x = x.mean((1, 2, 3))
                wrong = ((x > 0.55) & (x < 0.65)).float() * 10
                return torch.stack([5 - self.weight * x, self.weight * x + wrong], 1)

        images, labels = torch.full((1, 1, 2, 2), 0.5), torch.tensor([0])
        attack = pgd(steps=3, step_size="0.1", random_start=False)
        adversarial = attack(Narrow(), images, labels, 0.5, [0])
        torch.testing.assert_close(adversarial, torch.full_like(images, 0.6))

    def test_broken_samples_are_not_touched_by_later_restarts(
        self, network: Network, test_split: Split
    ) -> None:
        images, labels, samples = tensors(test_split)
        with attacked_through(network, Gradient.exact):
            found = [
                pgd(restarts=n, steps=1, step_size="eps/2")(network, images, labels, 40 / 255, samples)
                for n in (1, 2, 10)
            ]
            wrong = [network(x).argmax(1) != labels for x in found]
        for fewer, more in ((0, 1), (1, 2)):
            assert torch.equal(found[fewer][wrong[fewer]], found[more][wrong[fewer]])
            assert (wrong[more] | ~wrong[fewer]).all()
        assert int(wrong[2].sum()) > int(wrong[0].sum())

    def test_an_absolute_step_and_one_relative_to_eps_agree(
        self, network: Network, test_split: Split
    ) -> None:
        images, labels, samples = tensors(test_split)
        found = [
            pgd(step_size=step)(network, images, labels, 8 / 255, samples)
            for step in ("eps/4", "2/255", "0.5*eps/2")
        ]
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=ULP)
        torch.testing.assert_close(found[0], found[2], rtol=0, atol=ULP)


class TestStart:
    def test_follows_from_seed_restart_and_sample_alone(self, test_split: Split) -> None:
        images, _, samples = tensors(test_split)
        attack = pgd()
        starts = attack.start(images, 0.1, samples, 0)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        assert torch.equal(attack.start(images[order], 0.1, order.tolist(), 0), starts[order])
        assert torch.equal(attack.start(images[40:41], 0.1, [40], 0), starts[40:41])
        other = Pgd(PgdConfig(name="pgd", eps=[]), seed=1)
        for different in (attack.start(images, 0.1, samples, 1), other.start(images, 0.1, samples, 0)):
            assert (different != starts).flatten(1).any(1).all()

    def test_draws_nothing_from_the_global_generator(self, network: Network, test_split: Split) -> None:
        images, labels, samples = tensors(test_split)
        before = torch.get_rng_state()
        pgd(steps=1)(network, images, labels, 0.1, samples)
        assert torch.equal(torch.get_rng_state(), before)

    def test_is_uniform_in_the_ball_and_proportional_to_eps(self) -> None:
        images = torch.full((200, 1, 16, 16), 0.5)
        attack = pgd()
        unit = attack.start(images, 0.5, range(200), 0) - images
        half = attack.start(images, 0.25, range(200), 0) - images
        torch.testing.assert_close(half, unit / 2, rtol=0, atol=ULP)
        assert abs(float(unit.mean())) < 0.01
        assert float(unit.square().mean()) == pytest.approx(0.25 / 3, rel=0.02)
        assert 0.499 < float(unit.abs().max()) <= 0.5

    def test_is_the_image_itself_when_told(self, test_split: Split) -> None:
        images, _, samples = tensors(test_split)
        assert torch.equal(pgd(random_start=False).start(images, 0.1, samples, 0), images)


class Scrambler(nn.Module):
    """A random linear classifier for images of any shape."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(*shape, 3, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.flatten(0, -2)


class TestBall:
    @settings(deadline=None, max_examples=60)
    @given(
        eps=st.one_of(st.sampled_from([0.0, 1 / 255, 8 / 255, 1.0]), st.floats(0, 1)),
        shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
        n=st.integers(1, 4),
        seed=st.integers(0, 100),
        restarts=st.integers(1, 2),
        step_size=st.sampled_from(["eps/4", "2*eps", "0.1"]),
    )
    def test_adversarial_images_stay_in_it_and_in_0_1(
        self, eps: float, shape: tuple[int, int, int], n: int, seed: int, restarts: int, step_size: str
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        images = (torch.rand(n, *shape, generator=generator) * 1.5 - 0.25).clamp(0, 1)  # 0 and 1 are common
        labels = torch.randint(3, (n,), generator=generator)
        for attack in (fgsm(), pgd(steps=3, restarts=restarts, step_size=step_size)):
            adversarial = attack(Scrambler(shape), images, labels, eps, range(n))
            assert adversarial.shape == images.shape
            assert not adversarial.requires_grad
            assert float(adversarial.min()) >= 0
            assert float(adversarial.max()) <= 1
            assert float((adversarial - images).abs().max()) <= eps + 1e-6
            if eps == 0:
                assert torch.equal(adversarial, images)

    @given(value=st.floats(0, 1, width=32), moved=st.floats(-3, 3, width=32), eps=st.floats(0, 1))
    def test_projection_is_the_nearest_point(self, value: float, moved: float, eps: float) -> None:
        low, high = max(0.0, value - eps), min(1.0, value + eps)
        found = project(torch.tensor(moved), torch.tensor(value), eps)
        assert float(found) == pytest.approx(min(max(moved, low), high), abs=1e-6)

    def test_inputs_are_not_changed(self, network: Network, test_split: Split) -> None:
        images, labels, samples = tensors(test_split)
        kept = images.clone(), labels.clone()
        for attack in (fgsm(), pgd(steps=2)):
            attack(network, images, labels, 0.1, samples)
            assert torch.equal(images, kept[0])
            assert torch.equal(labels, kept[1])


class RobModel(Network):
    """The class name that makes torchattacks 3.5 look for ``mean`` and ``std``, and normalise by them."""


class TestTrapsOfTorchattacks:
    """A second normalisation, and a network that is put back into train mode."""

    @pytest.mark.parametrize("kind", [Network, RobModel])
    def test_images_are_normalised_once(self, kind: type, network: Network, test_split: Split) -> None:
        network.__class__ = kind
        images, labels, samples = tensors(test_split)
        expected = (images + 0.1 * gradient_sign(network, images, labels)).clamp(0, 1)
        adversarial = fgsm()(network, images, labels, 0.1, samples)
        assert float((adversarial - expected).abs().max()) <= ULP
        start = pgd().start(images, 0.1, samples, 0)
        expected = iterates(network, images, labels, start, 0.1, 0.02, 1)[1]
        adversarial, _ = pgd(steps=1, step_size="eps/5").descend(network, images, labels, start, 0.1)
        with torch.no_grad():
            right = network(start).argmax(1) == labels
        assert float((adversarial - expected)[right].abs().max()) <= ULP

    def test_the_traps_exist(self, network: Network, test_split: Split) -> None:
        """If this fails, torchattacks has changed, and the tests around it show less than they say."""
        images, labels, _ = tensors(test_split)
        expected = (images + 0.1 * gradient_sign(network, images, labels)).clamp(0, 1)
        network.__class__ = RobModel
        network.mean, network.std = network.mean.flatten(), network.std.flatten()
        trapped = torchattacks.FGSM(network, eps=0.1)
        assert float((trapped(images, labels) - expected).abs().max()) > 0.05
        wrapped = nn.Sequential(network.eval())  # in train mode itself, as every new module
        torchattacks.FGSM(wrapped, eps=0.1)(images, labels)
        assert network.training

    @pytest.mark.parametrize("attack", [fgsm(), pgd(steps=2)])
    def test_an_attack_leaves_every_mode_as_it_was(
        self, attack: Any, network: Network, test_split: Split
    ) -> None:
        images, labels, samples = tensors(test_split)
        attack(network, images, labels, 0.1, samples)
        assert not any(module.training for module in network.modules())
        state = {key: value.clone() for key, value in network.state_dict().items()}
        attack(network, images, labels, 0.1, samples)
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


class TestRecorded:
    def test_passes_images_and_gradients_on(self, network: Network, test_split: Split) -> None:
        images, labels, _ = tensors(test_split)
        recorded = Recorded(network)
        assert torch.equal(gradient_sign(recorded, images, labels), gradient_sign(network, images, labels))
        assert torch.equal(recorded.outputs, network(images))
        assert not recorded.outputs.requires_grad

    def test_hides_normalisation_constants(self, network: Network) -> None:
        recorded = Recorded(network)
        assert not hasattr(recorded, "mean")
        assert not hasattr(recorded, "std")


def test_unknown_attacks_are_refused_with_the_nearest_name() -> None:
    assert set(ATTACKS) == {"fgsm", "pgd"}
    with pytest.raises(RequestError, match=r"attack\.name: unknown 'fgms', did you mean 'fgsm'\?"):
        ATTACKS["fgms"]
