"""D16's derivatives by autograd and by differences, on networks whose gradients are known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from victims import victim_of
from wrong_gradients import ForeignFeedback, Steps

from sstune.attacks import GradientSource
from sstune.attacks.audit import Evidence
from sstune.attacks.audit.derivatives import (
    SMALL,
    Derivatives,
    DerivativeTest,
    d16,
    derivatives_at,
)
from sstune.backbones import Network
from sstune.datasets import Split
from sstune.schema import AttackLoss, Gradient
from sstune.schema.audit import Status
from sstune.seeding import seed_from

Audited = Callable[..., Evidence]
N, EPS, SEED = 12, 0.1, 3


def derivative_test(network: nn.Module, loss: AttackLoss = AttackLoss.margin) -> DerivativeTest:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (N, 1, 8, 8), generator=generator, dtype=torch.uint8)
    split = Split(images, torch.arange(N) % 2)
    samples = torch.arange(N) * 7
    victim = victim_of(network, split, samples, clean=torch.ones(N, dtype=torch.bool))
    return DerivativeTest(victim, GradientSource(Gradient.rule, network), loss, EPS, SEED)


def drawn(*key: int | str) -> Tensor:
    """(N, 64) uniform in [-1, 1], by the key of each sample."""
    rows = []
    for sample in torch.arange(N) * 7:
        generator = torch.Generator().manual_seed(seed_from(SEED, "derivatives", *key, int(sample)))
        rows.append(torch.empty(64).uniform_(-1, 1, generator=generator))
    return torch.stack(rows).double()


def directions() -> Tensor:
    """(16, N, 64)."""
    return torch.stack([drawn("direction", number) for number in range(16)]).sign()


def linear(**of_layer: float) -> tuple[nn.Module, nn.Module]:
    """The network, and its layer."""
    torch.manual_seed(0)
    layer = ForeignFeedback(64, 2, **of_layer) if of_layer else nn.Linear(64, 2)
    return nn.Sequential(nn.Flatten(), layer).eval(), layer


def test_of_a_linear_network_both_are_the_weights() -> None:
    network, layer = linear()
    assert isinstance(layer, nn.Linear)
    weights = layer.weight.detach().double()
    rise = torch.stack([weights[1] - weights[0], weights[0] - weights[1]])[torch.arange(N) % 2]
    expected = torch.einsum("knd,nd->nk", directions(), rise)
    for step in (1e-6, EPS / 4):
        found = derivative_test(network).in_float64()(step)
        assert torch.allclose(found.autograd, expected, atol=1e-9)
        assert torch.allclose(found.differences, expected, atol=1e-6)
        assert torch.allclose(found.correlation, torch.ones(N, dtype=torch.float64), atol=1e-6)
    in_float32 = derivative_test(network)(SMALL[torch.float32])
    assert (in_float32.correlation > 0.9999).all()


@pytest.mark.parametrize("loss", [AttackLoss.margin, AttackLoss.ce])
def test_of_a_curved_network_they_agree_near_0(loss: AttackLoss) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.Tanh(), nn.Linear(30, 2)).eval()
    found = derivative_test(network, loss).in_float64()(SMALL[torch.float64])
    assert torch.allclose(found.correlation, torch.ones(N, dtype=torch.float64), atol=1e-6)
    assert next(network.parameters()).dtype is torch.float32  # the copy is in float64, not the network
    parameter = next(network.parameters())
    assert parameter.requires_grad


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1])
def test_with_foreign_feedback_they_correlate_as_the_matrices_do(share: float) -> None:
    network, layer = linear(share=share)
    assert isinstance(layer, ForeignFeedback)
    found = derivative_test(network).in_float64()(SMALL[torch.float64])
    weights, back = layer.weight.detach().double(), layer.back().detach().double()
    along = directions()[:, torch.arange(N)]
    sign = 1 - 2 * (torch.arange(N) % 2).double()
    true, own = ((along @ (matrix[1] - matrix[0])).T * sign[:, None] for matrix in (weights, back))
    assert torch.allclose(found.autograd, own, atol=1e-5)
    assert torch.allclose(found.differences, true, atol=1e-5)
    expected = torch.nn.functional.cosine_similarity(true, own)
    assert torch.allclose(found.correlation, expected, atol=1e-5)
    assert (found.correlation.median() < 0.95) == (share > 0.2)


def test_points_lie_in_the_ball_and_differences_among_the_images() -> None:
    seen: list[Tensor] = []

    class Sees(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images.detach())
            return images.flatten(1)[:, :2]

    test = derivative_test(Sees())
    test(EPS / 4)
    looked = torch.cat(seen)
    assert ((looked >= 0) & (looked <= 1)).all()
    images = test.victim.split.images
    assert isinstance(images, Tensor)
    expected = (images / 255 + EPS * drawn("point").float().view(N, 1, 8, 8)).clamp(EPS / 4, 1 - EPS / 4)
    assert any(len(each) == N and torch.allclose(each, expected, atol=1e-6) for each in seen)


def test_a_gradient_of_zero_is_right_where_nothing_changes_and_wrong_elsewhere() -> None:
    zeros, some = torch.zeros(2, 3), torch.tensor([[1.0, -2, 3]]).expand(2, 3)
    assert Derivatives(zeros, zeros).correlation.tolist() == [1, 1]
    assert Derivatives(zeros, some).correlation.tolist() == [0, 0]
    assert Derivatives(some, zeros).correlation.tolist() == [0, 0]
    assert Derivatives(some, -2 * some).correlation.tolist() == pytest.approx([-1, -1])
    network, layer = linear()
    assert isinstance(layer, nn.Linear)
    nn.init.zeros_(layer.weight)
    assert derivative_test(network).in_float64()(1e-6).correlation.tolist() == [1] * N


def test_steps_are_amiss_near_0_but_not_over_a_step_that_is_longer() -> None:
    network, _ = linear()
    stepped = derivative_test(nn.Sequential(Steps(), network).eval()).in_float64()
    assert (stepped(SMALL[torch.float64]).correlation < 0.95).all()
    assert (stepped(0.3).correlation > 0.9).all()


class Float32Only(nn.Module):
    """Its matrix is no buffer, so that it stays as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = torch.randn(64, 10, generator=torch.Generator().manual_seed(0)) / 8

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.matrix


class Float32Outputs(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return logits.float()


class TestD16:
    def test_a_network_for_float32_is_tested_in_float32(self, audited: Audited) -> None:
        evidence = audited(Float32Only().eval())
        evidence.victim = victim_of(
            evidence.victim.network, evidence.victim.split, clean=torch.ones(120, dtype=torch.bool)
        )
        eps = evidence.probed_eps[0]
        near, _ = derivatives_at(evidence, eps)
        assert (near.correlation > 0.999).all()
        with pytest.raises(RuntimeError):
            derivative_test(Float32Only()).in_float64()(1e-6)

    def test_a_network_that_answers_in_float32_is_not_amiss(self, network: Network, audited: Audited) -> None:
        check = d16(audited(nn.Sequential(network, Float32Outputs()).eval()))
        assert check.status is Status.ok

    def test_the_trained_network_predicts_differences(self, network: Network, audited: Audited) -> None:
        evidence = audited(network)
        check = d16(evidence)
        assert (check.status, check.finds) == (Status.ok, None)
        assert check.n == 32 * len(evidence.probed_eps)
        assert not any("finite_difference" in key for key in evidence.cells)

    def test_a_flat_derivative_is_masked_by_the_attack_along_differences(
        self, network: Network, audited: Audited
    ) -> None:
        class Detached(nn.Module):
            def forward(self, images: Tensor) -> Tensor:
                return network(images.detach())

        check = d16(audited(Detached().eval()))
        assert (check.status, check.figure) == (Status.masked, 100)
        assert check.finds is not None
        assert check.finds <= 5
