"""What an attack goes up: losses of each sample, and their gradients averaged over random feedback."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from victims import batch_of, gradients, labelled, objective_of

from sstune import rules
from sstune.attacks import AttackedModel, gradient_mode
from sstune.attacks.ascent import loss_gradient
from sstune.backbones import Network
from sstune.datasets import Split
from sstune.schema import AttackLoss, Draws, Gradient
from sstune.seeding import seed_from
from sstune.tasks.classification import cross_entropy, margin

Converted = Callable[[str], Network]


class Smooth(nn.Module):
    """Differentiable everywhere, in float64."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = torch.randn(12, 8, generator=generator, dtype=torch.float64)
        self.second = torch.randn(8, 4, generator=generator, dtype=torch.float64)

    def forward(self, images: Tensor) -> Tensor:
        return torch.tanh(images.flatten(1) @ self.first) @ self.second


class TestLosses:
    def test_margin_is_the_best_other_logit_less_ones_own(self) -> None:
        logits = torch.randn(20, 5, dtype=torch.float64)
        classes = torch.arange(20) % 5
        expected = [
            max(float(row[j]) for j in range(5) if j != k) - float(row[k])
            for row, k in zip(logits, classes.tolist(), strict=True)
        ]
        assert margin(logits, classes).tolist() == expected
        assert torch.equal(margin(logits, classes) > 0, logits.argmax(1) != classes)

    def test_margin_of_two_classes(self) -> None:
        logits = torch.tensor([[1.0, 3.0], [4.0, -1.0]])
        assert margin(logits, torch.tensor([0, 0])).tolist() == [2.0, -5.0]

    def test_cross_entropy_is_of_each_sample(self) -> None:
        logits = torch.randn(6, 5, dtype=torch.float64)
        classes = torch.arange(6) % 5
        expected = logits.exp().sum(1).log() - logits[torch.arange(6), classes]
        torch.testing.assert_close(cross_entropy(logits, classes), expected)

    @pytest.mark.parametrize("loss", [AttackLoss.ce, AttackLoss.margin])
    @pytest.mark.parametrize("targeted", [False, True])
    def test_gradients_equal_finite_differences(self, loss: AttackLoss, targeted: bool) -> None:
        """Of each sample's own loss, summed: a mean would be smaller by the number of samples."""
        network, h = Smooth(), 1e-6
        images = torch.rand(5, 3, 2, 2, dtype=torch.float64)
        labels = torch.tensor([0, 1, 2, 3, 0])
        targets = (labels + 2) % 4 if targeted else None
        batch = labelled(images, labels, targets, range(5))
        function = {AttackLoss.ce: cross_entropy, AttackLoss.margin: margin}[loss]

        def wanted(x: Tensor) -> Tensor:
            return function(network(x), labels) if targets is None else -function(network(x), targets)

        outputs, gradient = loss_gradient(AttackedModel(network), images, objective_of(batch, loss))
        assert torch.equal(outputs, network(images))
        numeric = torch.empty_like(images)
        for place in torch.cartesian_prod(torch.arange(3), torch.arange(2), torch.arange(2)).tolist():
            step = torch.zeros_like(images)
            step[(slice(None), *place)] = h
            numeric[(slice(None), *place)] = (wanted(images + step) - wanted(images - step)) / (2 * h)
        torch.testing.assert_close(gradient, numeric, rtol=1e-6, atol=1e-8)

    @pytest.mark.parametrize("loss", [AttackLoss.ce, AttackLoss.margin])
    def test_a_samples_gradient_does_not_depend_on_its_company(
        self, loss: AttackLoss, network: Network, test_split: Split
    ) -> None:
        batch, model = batch_of(test_split), AttackedModel(network)
        _, together = loss_gradient(model, batch.images, objective_of(batch, loss))
        for i in (0, 17, 119):
            alone = batch.take(torch.tensor([i]))
            _, gradient = loss_gradient(model, alone.images, objective_of(alone, loss))
            torch.testing.assert_close(gradient[0], together[i], rtol=1e-4, atol=1e-7)

    def test_a_network_that_cuts_its_graph_has_a_gradient_of_zero(self) -> None:
        class Cut(nn.Module):
            def forward(self, images: Tensor) -> Tensor:
                return images.detach().flatten(1)[:, :3]

        images = torch.rand(4, 1, 2, 2)
        batch = labelled(images, torch.zeros(4, dtype=torch.int64), None, range(4))
        outputs, gradient = loss_gradient(AttackedModel(Cut()), images, objective_of(batch, AttackLoss.ce))
        assert torch.equal(outputs, images.flatten(1)[:, :3])
        assert torch.equal(gradient, torch.zeros_like(images))


class TestEot:
    def test_is_the_mean_over_gradients_of_their_own_draws(
        self, converted: Converted, test_split: Split
    ) -> None:
        network, batch, k = converted("brsf"), batch_of(test_split), 4
        single = []
        with gradient_mode(network, Gradient.rule):
            for i in range(k):
                rules.redraw(network, seed_from("attack", "key", i))
                single.append(gradients(network, batch.images, batch.targets))
        with gradient_mode(network, Gradient.rule):
            model = AttackedModel(network, Draws.forward, k, ("key",))
            outputs, mean = loss_gradient(model, batch.images, objective_of(batch, AttackLoss.ce))
        torch.testing.assert_close(mean, torch.stack(single).mean(0))
        assert not torch.equal(single[0], single[1])
        torch.testing.assert_close(outputs, network(batch.images).detach())

    def test_of_a_fixed_network_is_its_gradient(self, converted: Converted, test_split: Split) -> None:
        network, batch = converted("usf"), batch_of(test_split)
        with gradient_mode(network, Gradient.rule):
            one, many = (
                loss_gradient(
                    AttackedModel(network, Draws.forward, k), batch.images, objective_of(batch, AttackLoss.ce)
                )[1]
                for k in (1, 3)
            )
        torch.testing.assert_close(one, many)
