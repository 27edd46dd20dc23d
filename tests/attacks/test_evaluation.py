"""Robust accuracy: whose gradient it is, that figures are valid, and that they depend on nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sstune.attacks import (
    ATTACKS,
    Attack,
    InvalidAttack,
    attacked_through,
    check_images,
    check_zero_eps,
    robust,
)
from sstune.backbones import Network
from sstune.datasets import Split
from sstune.rules import begin_step
from sstune.schema import AttackConfig, ClassificationConfig, Gradient, PgdConfig
from sstune.tasks import evaluate
from sstune.tasks.classification import Classification

CPU = torch.device("cpu")
RULES = ["usf", "frsf", "brsf", "fa"]
Converted = Callable[[str], Network]


def make(name: str, **fields: Any) -> Attack:
    config = (PgdConfig if name == "pgd" else AttackConfig)(name=name, eps=["8/255"], **fields)
    return ATTACKS[name](config, 0)


def judged(network: Network, split: Split) -> Tensor:
    return evaluate(network, Classification(ClassificationConfig("classification"), 10), split, CPU).correct


def attacked(
    network: Network,
    attack: Attack,
    split: Split,
    eps: float,
    gradient: Gradient = Gradient.exact,
    samples: Tensor | None = None,
    clean: Tensor | None = None,
    batch_size: int = 64,
) -> Tensor:
    samples = torch.arange(len(split)) if samples is None else samples
    clean = judged(network, split) if clean is None else clean
    return robust(network, attack, split, samples, clean, eps, gradient, batch_size, CPU)


def input_gradients(network: nn.Module, split: Split) -> Tensor:
    images = (split.images / 255).requires_grad_()
    F.cross_entropy(network(images), split.labels, reduction="sum").backward()
    assert images.grad is not None
    return images.grad


class TestGradients:
    """Sample by sample."""

    @pytest.mark.parametrize("name", ["bp", "sham"])
    def test_both_are_those_of_the_plain_network_for_bp(
        self, name: str, network: Network, converted: Converted, test_split: Split
    ) -> None:
        plain, other = input_gradients(network, test_split), converted(name)
        for gradient in Gradient:
            with attacked_through(other, gradient):
                assert torch.equal(input_gradients(other, test_split), plain)

    @pytest.mark.parametrize("name", RULES)
    def test_of_a_rule_differ_and_exact_is_the_plain_networks(
        self, name: str, network: Network, converted: Converted, test_split: Split
    ) -> None:
        plain, other = input_gradients(network, test_split), converted(name)
        with attacked_through(other, Gradient.exact):
            assert torch.equal(input_gradients(other, test_split), plain)
        with attacked_through(other, Gradient.rule):
            rule = input_gradients(other, test_split)
        assert (rule != plain).flatten(1).any(1).all()
        cosine = F.cosine_similarity(rule.flatten(1), plain.flatten(1))
        assert float(cosine.max()) < 0.99

    @pytest.mark.parametrize("name", RULES)
    @pytest.mark.parametrize("attack", ["fgsm", "pgd"])
    def test_reach_the_attack(
        self, name: str, attack: str, network: Network, converted: Converted, test_split: Split
    ) -> None:
        other, eps, method = converted(name), 24 / 255, make(attack)
        plain = attacked(network, method, test_split, eps)
        assert torch.equal(attacked(other, method, test_split, eps, Gradient.exact), plain)
        assert not torch.equal(attacked(other, method, test_split, eps, Gradient.rule), plain)

    def test_fa_masks_where_exact_does_not(self, converted: Converted, test_split: Split) -> None:
        """A gradient that has nothing to do with the network attacks hardly better than noise."""
        other = converted("fa")
        kept = {g: int(attacked(other, make("pgd"), test_split, 24 / 255, g).sum()) for g in Gradient}
        assert kept[Gradient.rule] > kept[Gradient.exact] + 0.2 * len(test_split)

    @pytest.mark.parametrize("random_start", [True, False])
    def test_exact_pgd_with_a_large_eps_leaves_nothing(
        self, random_start: bool, converted: Converted, test_split: Split
    ) -> None:
        method = make("pgd", steps=20, step_size="eps/4", random_start=random_start)
        assert int(judged(converted("usf"), test_split).sum()) > 0.9 * len(test_split)
        assert int(attacked(converted("usf"), method, test_split, 0.4).sum()) == 0


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
class TestIndependence:
    """Of batch size, of order, and of the other samples."""

    eps = 24 / 255

    @pytest.mark.parametrize("batch_size", [1, 7, 120, 1000])
    def test_of_batch_size(self, attack: str, batch_size: int, network: Network, test_split: Split) -> None:
        method = make(attack, steps=4) if attack == "pgd" else make(attack)
        expected = attacked(network, method, test_split, self.eps, batch_size=32)
        assert 0 < int(expected.sum()) < int(judged(network, test_split).sum())
        assert torch.equal(attacked(network, method, test_split, self.eps, batch_size=batch_size), expected)

    def test_of_order_and_selection(self, attack: str, network: Network, test_split: Split) -> None:
        expected = attacked(network, make(attack), test_split, self.eps)
        order = torch.randperm(len(test_split), generator=torch.Generator().manual_seed(0))
        for chosen in (order, order[:50]):
            part = test_split.take(chosen)
            assert torch.equal(
                attacked(network, make(attack), part, self.eps, samples=chosen), expected[chosen]
            )

    def test_of_the_global_random_state(self, attack: str, network: Network, test_split: Split) -> None:
        found = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            found.append(attacked(network, make(attack), test_split, self.eps))
            assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(*found)


def test_restarts_only_ever_break_more(network: Network, test_split: Split) -> None:
    kept = [
        attacked(
            network, make("pgd", restarts=n, steps=1, step_size="eps/2"), test_split, 40 / 255, batch_size=50
        )
        for n in (1, 2, 10)
    ]
    assert (kept[1] <= kept[0]).all()
    assert (kept[2] <= kept[1]).all()
    assert int(kept[2].sum()) < int(kept[0].sum())


def test_accuracy_falls_with_eps_and_pgd_is_no_weaker_than_fgsm(network: Network, test_split: Split) -> None:
    counts = {
        name: [int(attacked(network, make(name), test_split, n / 255).sum()) for n in (0, 4, 16, 32)]
        for name in ("fgsm", "pgd")
    }
    for name in counts:
        assert counts[name][0] == int(judged(network, test_split).sum())
        assert counts[name] == sorted(counts[name], reverse=True)
    assert all(p <= f for p, f in zip(counts["pgd"], counts["fgsm"], strict=True))


class Spy(Attack):
    """Moves nothing, and keeps what it was asked to attack."""

    def __init__(self) -> None:
        super().__init__(AttackConfig(name="spy", eps=["0"]), 0)
        self.samples: list[int] = []
        self.images: list[Tensor] = []
        self.modes: set[bool] = set()

    def __call__(
        self, network: nn.Module, images: Tensor, labels: Tensor, eps: float, samples: Sequence[int]
    ) -> Tensor:
        self.samples += samples
        self.images.append(images)
        self.modes |= {module.training for module in network.modules()}
        assert not any(parameter.requires_grad for parameter in network.parameters())
        return images


class TestRobust:
    @pytest.mark.parametrize("batch_size", [1, 16, 512])
    def test_samples_wrong_without_an_attack_are_never_attacked(
        self, batch_size: int, network: Network, test_split: Split
    ) -> None:
        clean = torch.arange(len(test_split)) % 3 == 0
        clean &= judged(network, test_split)
        samples, spy = torch.arange(len(test_split)) + 1000, Spy()
        kept = attacked(network, spy, test_split, 0.1, samples=samples, clean=clean, batch_size=batch_size)
        assert torch.equal(kept, clean)
        assert spy.samples == samples[clean].tolist()
        assert torch.equal(torch.cat(spy.images), test_split.images[clean].float() / 255)
        assert spy.modes == {False}

    def test_nothing_right_is_nothing_to_attack(self, network: Network, test_split: Split) -> None:
        clean, spy = torch.zeros(len(test_split), dtype=torch.bool), Spy()
        assert not attacked(network, spy, test_split, 0.1, clean=clean).any()
        assert spy.samples == []
        check_zero_eps(network, spy, test_split, torch.arange(len(test_split)), clean, Gradient.exact, CPU)

    def test_inputs_are_kept(self, network: Network, test_split: Split) -> None:
        clean = judged(network, test_split)
        before = clean.clone()
        kept = attacked(network, make("fgsm"), test_split, 0.4, clean=clean)
        assert torch.equal(clean, before)
        assert (kept <= clean).all()
        assert kept.dtype == torch.bool

    @pytest.mark.parametrize("name", ["bp", *RULES])
    @pytest.mark.parametrize("gradient", list(Gradient))
    def test_zero_eps_changes_no_judgement(
        self, name: str, gradient: Gradient, converted: Converted, test_split: Split
    ) -> None:
        network = converted(name)
        clean, samples = judged(network, test_split), torch.arange(len(test_split))
        for attack in (
            make("fgsm"),
            make("pgd", restarts=2, steps=2),
            make("pgd", step_size="2/255", steps=2),
        ):
            assert torch.equal(attacked(network, attack, test_split, 0.0, gradient), clean)
            check_zero_eps(network, attack, test_split, samples, clean, gradient, CPU)


class TestCheckImages:
    images = torch.tensor([0.0, 0.2, 0.5, 1.0]).reshape(1, 1, 2, 2)

    @pytest.mark.parametrize(
        ("delta", "eps"),
        [
            ([0.0, 0.0, 0.0, 0.0], 0.0),
            ([0.1, -0.1, 0.1, -0.1], 0.1),
            ([5e-7, 0.0, 0.0, 0.0], 0.0),  # rounding
            ([1.0, 0.8, 0.5, -1.0], 1.0),
        ],
    )
    def test_passes_valid_ones(self, delta: list[float], eps: float) -> None:
        assert check_images(self.images + torch.tensor(delta).reshape(1, 1, 2, 2), self.images, eps) is None

    @pytest.mark.parametrize(
        ("delta", "eps", "message"),
        [
            ([0.0, float("nan"), 0.0, 0.0], 0.1, "not finite"),
            ([0.0, float("inf"), 0.0, 0.0], 1.0, "not finite"),
            ([0.0, 0.0, float("-inf"), 0.0], 1.0, "not finite"),
            ([-0.01, 0.0, 0.0, 0.0], 0.1, r"leaves \[0, 1\]: -0\.0"),
            ([0.0, 0.0, 0.0, 0.01], 0.1, r"leaves \[0, 1\]: 0\.0 to 1\.0"),
            ([0.0, 0.0, 0.11, 0.0], 0.1, r"is 0\.1\d* away, eps is 0\.1"),
            ([0.0, 0.0, -0.11, 0.0], 0.1, r"is 0\.1\d* away, eps is 0\.1"),
            ([0.0, 2e-6, 0.0, 0.0], 0.0, "eps is 0"),
        ],
    )
    def test_catches_each_violation(self, delta: list[float], eps: float, message: str) -> None:
        adversarial = self.images + torch.tensor(delta).reshape(1, 1, 2, 2)
        with pytest.raises(InvalidAttack, match=f"^D0: .*{message}"):
            check_images(adversarial, self.images, eps)


class Faulty(Attack):
    """An attack with one planted fault."""

    def __init__(self, fault: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__(AttackConfig(name="faulty", eps=["0"]), 0)
        self.fault = fault

    def __call__(
        self, network: nn.Module, images: Tensor, labels: Tensor, eps: float, samples: Sequence[int]
    ) -> Tensor:
        return self.fault(network, images)


def train_mode(network: nn.Module, images: Tensor) -> Tensor:
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.9
    network.train()
    return images


def changes_weights(network: nn.Module, images: Tensor) -> Tensor:
    for parameter in network.parameters():
        parameter.data.neg_()
    return images


class TestPlantedFaults:
    @pytest.mark.parametrize("gradient", list(Gradient))
    @pytest.mark.parametrize(
        ("fault", "message"),
        [
            (train_mode, r"faulty with eps = 0 changes the judgement of \d+ of 120 samples"),
            (changes_weights, r"faulty with eps = 0 changes the judgement of \d+ of 120 samples"),
            (lambda network, images: 1 - images, "away, eps is 0"),
            (lambda network, images: images.roll(1, 0), "away, eps is 0"),
            (lambda network, images: images - 1, r"leaves \[0, 1\]"),
            (lambda network, images: images / 0, "not finite"),
        ],
    )
    def test_show_at_zero_eps(
        self, fault: Any, message: str, gradient: Gradient, network: Network, test_split: Split
    ) -> None:
        clean, samples = judged(network, test_split), torch.arange(len(test_split))
        with pytest.raises(InvalidAttack, match=message):
            check_zero_eps(network, Faulty(fault), test_split, samples, clean, gradient, CPU)

    def test_only_the_first_256_samples_are_checked(self, network: Network, test_split: Split) -> None:
        split = test_split.take(torch.arange(300) % len(test_split))
        clean, spy = judged(network, split), Spy()
        check_zero_eps(network, spy, split, torch.arange(300), clean, Gradient.exact, CPU)
        assert spy.samples == clean[:256].nonzero().flatten().tolist()


class TestNetworkIsLeftAsItWas:
    """Modes, requires_grad, weights, gradients and feedback, after an attack and after an exception."""

    @pytest.fixture
    def peculiar(self, converted: Converted) -> Network:
        """In train mode but for one module, and with one frozen parameter."""
        network = converted("brsf")
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
        state, expected = network.state_dict(), before.state_dict()
        for key, value in expected.items():
            assert torch.equal(state[key], value) if isinstance(value, Tensor) else state[key] == value
        # and the gradient that was in use
        network.eval(), before.eval()
        images = torch.rand(2, 1, 8, 8)
        found = []
        for each in (network, before):
            x = images.clone().requires_grad_()
            each(x).sum().backward()
            found.append(x.grad)
        assert torch.equal(*found)

    @pytest.mark.parametrize("gradient", list(Gradient))
    @pytest.mark.parametrize("attack", ["fgsm", "pgd"])
    def test_after_an_attack(
        self, attack: str, gradient: Gradient, peculiar: Network, test_split: Split
    ) -> None:
        before = copy.deepcopy(peculiar)
        attacked(peculiar, make(attack), test_split, 0.1, gradient)
        self.assert_same(peculiar, before)

    @pytest.mark.parametrize("gradient", list(Gradient))
    def test_after_an_exception(self, gradient: Gradient, peculiar: Network, test_split: Split) -> None:
        before = copy.deepcopy(peculiar)
        with pytest.raises(InvalidAttack):
            attacked(peculiar, Faulty(lambda network, images: images + 1), test_split, 0.1, gradient)
        self.assert_same(peculiar, before)
