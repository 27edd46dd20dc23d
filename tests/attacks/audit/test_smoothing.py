"""The smoothed copy of a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sstune.attacks.audit.smoothing import Smoothed
from sstune.seeding import seed_from

SIGMA = 0.05


def curved() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(27, 4)).double().eval()


def images(n: int = 5) -> Tensor:
    return torch.rand(n, 1, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_is_the_mean_over_four_noisy_copies() -> None:
    network, x = curved(), images()
    expected = torch.zeros(5, 4, dtype=torch.float64)
    for number in (0, 1):
        noise = torch.randn(1, 5, 5, generator=torch.Generator().manual_seed(seed_from("smoothed", number)))
        expected += network(x + SIGMA * noise.double()) / 4 + network(x - SIGMA * noise.double()) / 4
    assert torch.allclose(Smoothed(network, SIGMA)(x), expected, rtol=0, atol=1e-12)
    assert not torch.allclose(network(x), expected, rtol=0, atol=1e-6)


def test_an_image_does_not_depend_on_its_batch() -> None:
    smoothed, x = Smoothed(curved(), SIGMA), images()
    torch.manual_seed(7)
    whole = smoothed(x)
    torch.manual_seed(8)
    assert torch.allclose(torch.cat([smoothed(x[2:]), smoothed(x[:2])]), whole.roll(-2, 0), atol=1e-14)


def test_a_linear_network_stays_the_same() -> None:
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(25, 3)).double()
    assert torch.allclose(Smoothed(linear, SIGMA)(images()), linear(images()), rtol=0, atol=1e-12)


def test_its_gradient_is_that_of_finite_differences() -> None:
    smoothed = Smoothed(curved(), SIGMA)
    assert torch.autograd.gradcheck(smoothed, (images(2).requires_grad_(),), eps=1e-6, atol=1e-7)


def test_sees_a_slope_where_steps_have_none() -> None:
    """Steps of 0.1 and noise of 0.5."""

    def stairs(x: Tensor) -> Tensor:
        return (x * 10).round().flatten(1).sum(1, keepdim=True)

    class Stairs(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return stairs(x)

    x = images(1)
    smoothed = Smoothed(Stairs(), 0.5)
    assert (smoothed(x + 0.04) > smoothed(x)).all()
    assert not (stairs(x + 1e-3) > stairs(x)).all()
