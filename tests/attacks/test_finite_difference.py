"""The attack along finite differences, on networks whose gradients are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from victims import attacked, batch_of, make, objective_of, right
from wrong_gradients import ForeignFeedback, Steps

from sstune.attacks import AttackedModel, Outcome
from sstune.attacks.finite_difference import directions, estimated_gradient
from sstune.backbones import Network
from sstune.datasets import Split
from sstune.schema import Gradient

EPS = 7.1 / 255


@pytest.mark.parametrize("size", [1, 2, 64, 300, 3 * 32 * 32])
def test_directions_are_orthogonal_and_use_every_pixel(size: int) -> None:
    whole = directions(range(size), size, seed=5).double()
    product = whole @ whole.T / size
    assert (product - torch.eye(size)).abs().max() < 1e-5
    assert torch.equal(directions(range(size // 2, size), size, seed=5).double(), whole[size // 2 :])
    if size > 2:
        assert not torch.equal(directions(range(size), size, seed=6).double(), whole)


class Quadratic(nn.Module):
    """Logits 0 and ``x A x / 2 + b x``."""

    def __init__(self, size: int, curvature: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        a = torch.randn(size, size, generator=generator, dtype=torch.float64) / size
        self.a = curvature * (a + a.T) / 2
        self.b = torch.randn(size, generator=generator, dtype=torch.float64)

    def forward(self, images: Tensor) -> Tensor:
        x = images.double().flatten(1)
        rise = (x @ self.a * x).sum(1) / 2 + x @ self.b
        return torch.stack([torch.zeros_like(rise), rise], 1)

    def gradient(self, images: Tensor) -> Tensor:
        return images.double().flatten(1) @ self.a + self.b


@pytest.mark.parametrize("size", [8, 18])  # 64 and 324 pixels: one forward pass for the latter is not enough
@pytest.mark.parametrize(("curvature", "step"), [(0.0, 0.1), (1.0, 1e-4)])
def test_the_estimate_is_the_gradient(size: int, curvature: float, step: float) -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(4, 1, size, size, generator=generator, dtype=torch.float64)
    network = Quadratic(size**2, curvature)
    split = Split(torch.zeros(4, 1, size, size, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    objective = objective_of(batch_of(split), "margin")
    found = estimated_gradient(AttackedModel(network), objective, images.float(), step, seed=0)
    sign = torch.tensor([1.0, -1, 1, -1])[:, None]
    expected = sign * network.gradient(images)
    error = (found.flatten(1).double() - expected).norm(dim=1) / expected.norm(dim=1)
    assert (error < 1e-3).all()


def grey(n: int = 40) -> Split:
    """Images around grey, of two classes, not on the grid of the steps of 1/16."""
    generator = torch.Generator().manual_seed(2)
    return Split(
        torch.randint(100, 156, (n, 1, 8, 8), generator=generator, dtype=torch.uint8), torch.zeros(n).long()
    )


def learned(layer: nn.Module) -> tuple[nn.Module, Split]:
    """A linear classifier and images with the classes that it says."""
    network = nn.Sequential(nn.Flatten(), layer).eval()
    split = grey()
    assert isinstance(split.images, Tensor)
    return network, Split(split.images, network(split.images / 255).argmax(1))


class TestOfAWrongGradient:
    def left(self, name: str, network: nn.Module, split: Split) -> Outcome:
        return attacked(network, make(name, loss="margin", steps=20), split, EPS, Gradient.rule)

    def test_it_breaks_what_pgd_leaves(self) -> None:
        torch.manual_seed(0)
        network, split = learned(ForeignFeedback(64, 2))
        by_pgd, by_differences = (self.left(name, network, split) for name in ("pgd", "finite_difference"))
        weights = network[1].weight.detach()  # type: ignore[index]
        assert isinstance(split.images, Tensor)
        # what the best perturbation of a linear classifier leaves
        margins = (split.images / 255).flatten(1) @ (weights[1] - weights[0])
        robust = margins.abs() > EPS * (weights[1] - weights[0]).abs().sum()
        assert 10 < robust.sum() < by_pgd.robust.sum() - 10
        assert torch.equal(by_differences.robust, robust)

    def test_steps_are_no_obstacle(self) -> None:
        torch.manual_seed(0)
        network, split = learned(nn.Linear(64, 2))
        flat = nn.Sequential(Steps(), Detached(), network).eval()
        assert (
            self.left("pgd", flat, split).robust.sum()
            > self.left("finite_difference", flat, split).robust.sum()
        )


class Detached(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.detach()


def test_on_a_trained_network_it_is_no_weaker_than_pgd_and_stays_in_the_ball(
    network: Network, test_split: Split
) -> None:
    split = test_split.take(torch.arange(40))
    batch = batch_of(split)
    attack = make("finite_difference", loss="margin", steps=5, rounds=1)
    found = attack("restart 0", AttackedModel(network), batch, objective_of(batch, "margin"), EPS).images
    assert ((found - batch.images).abs() <= EPS + 1e-6).all()
    assert ((found >= 0) & (found <= 1)).all()
    pgd = right(network, make("pgd", loss="margin", steps=5), split, EPS)
    by_differences = right(network, attack, split, EPS)
    assert not (by_differences & ~pgd).any()


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_keeps_a_success_of_pgd(loss: str, network: Network, test_split: Split) -> None:
    split = test_split.take(torch.arange(60))
    pgd, ours = (
        right(network, make(name, loss=loss, steps=3), split, 40 / 255)
        for name in ("pgd", "finite_difference")
    )
    assert not (ours & ~pgd).any()


def test_does_not_depend_on_the_size_of_a_batch() -> None:
    torch.manual_seed(0)
    network, split = learned(ForeignFeedback(64, 2))
    attack = make("finite_difference", loss="margin", rounds=2)
    outcomes = [attacked(network, attack, split, EPS, Gradient.rule, size) for size in (7, 40)]
    assert torch.equal(outcomes[0].robust, outcomes[1].robust)
    assert 0 < outcomes[0].robust.sum() < 40


def test_at_eps_0_nothing_moves(network: Network, test_split: Split) -> None:
    batch = batch_of(test_split.take(torch.arange(10)))
    attack = make("finite_difference")
    result = attack("restart 0", AttackedModel(network), batch, objective_of(batch), 0.0)
    assert torch.equal(result.images, batch.images)


def test_restarts_begin_elsewhere(network: Network, test_split: Split) -> None:
    batch = batch_of(test_split.take(torch.arange(4)))
    attack = make("finite_difference", steps=1, rounds=1, restarts=2)
    first, second = (
        attack(stage, AttackedModel(network), batch, objective_of(batch), 0.01).images
        for stage in attack.stages
    )
    assert len(attack.stages) == 2
    assert not torch.equal(first, second)
