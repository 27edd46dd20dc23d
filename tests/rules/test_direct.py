"""dfa against Nokland's equations in NumPy, and against autograd of an expression that says the same."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from direct_oracle import direct, projections
from oracle import EXACT, disturb, gaussian
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from variants import DFA

from sstune.backbones.cifar_resnet import CifarResNet
from sstune.rules import convert, feedback_layers
from sstune.schema import RequestError, RuleConfig, Scale

Rule = Callable[..., RuleConfig]
Array = npt.NDArray[np.float64]


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3)
    ).double()


def numpy_of(tensor: Tensor) -> Array:
    array: Array = tensor.detach().numpy().astype(np.float64)
    return array


@pytest.mark.parametrize("scale", list(Scale))
@pytest.mark.parametrize("name", DFA)
def test_equals_noklands_equations(name: str, scale: Scale, rule_config: Rule) -> None:
    """delta_l = (B_l e) * f'(a_l), dW_l = delta_l h_l^T, db_l = delta_l, for cross-entropy."""
    network, x, labels = mlp(), gaussian(8, 6).requires_grad_(), torch.arange(8) % 3
    convert(network, rule_config(name, scale), seed=0, example=gaussian(2, 6))
    for layer in feedback_layers(network).values():
        disturb(layer)
    F.cross_entropy(network(x), labels).backward()
    matrices = [numpy_of(matrix) for matrix in projections(network).values()]  # each (3, inputs)
    layers = [network[i] for i in (0, 2, 4, 6)]
    hidden, activities = numpy_of(x), []
    for layer in layers:
        activities.append(hidden)
        logits = hidden @ numpy_of(layer.weight).T + numpy_of(layer.bias)
        hidden = np.tanh(logits)
    odds = np.exp(logits)
    error = (odds / odds.sum(1, keepdims=True) - np.eye(3)[labels.numpy()]) / 8
    for i, layer in enumerate(layers):
        last = i == len(layers) - 1
        delta = error if last else (error @ matrices[i + 1]) * (1 - activities[i + 1] ** 2)
        np.testing.assert_allclose(layer.weight.grad, delta.T @ activities[i], **EXACT)
        np.testing.assert_allclose(layer.bias.grad, delta.sum(0), **EXACT)
    np.testing.assert_allclose(x.grad, error @ matrices[0], **EXACT)


class Tokens(nn.Module):
    """Patches as tokens, (N, T, D), then windows folded into the batch, (2 N, T / 2, D), as in Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 2, stride=2)
        self.norm, self.mix = nn.LayerNorm(6), nn.Linear(6, 6)
        self.window, self.head = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = tokens + F.gelu(self.mix(self.norm(tokens)))
        n, t, d = tokens.shape
        windows = F.gelu(self.window(tokens.reshape(n * 2, t // 2, d)))
        return self.head((tokens + windows.reshape(n, t, d)).mean(1))


class Twice(nn.Module):
    """One layer at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.shared(torch.tanh(self.shared(x))))
        return self.head(x.mean((2, 3)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": lambda: CifarResNet(blocks=1, channels=3, outputs=4),
    "tokens": Tokens,
    "twice": Twice,
    "grouped": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, padding="same", padding_mode="circular"),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 4, 2, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 81, 4),
    ),
}
EVERY_NETWORK = pytest.mark.parametrize("which", NETWORKS)
BOTH_SPREADS = pytest.mark.parametrize("name", DFA)


def pair(which: str, rule: RuleConfig) -> tuple[nn.Module, nn.Module]:
    """A converted network, and the same one as it was."""
    torch.manual_seed(0)
    plain = NETWORKS[which]().double()
    converted = copy.deepcopy(plain)
    convert(converted, rule, seed=0, example=gaussian(3, 3, 8, 8))
    return converted, plain


def loss_of(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, torch.arange(len(logits)) % 4)


def log_sum(logits: Tensor) -> Tensor:
    return logits.logsumexp(-1).sum()


def gradients(network: nn.Module, outputs: Tensor, x: Tensor, loss: Any = loss_of) -> list[Tensor]:
    return list(torch.autograd.grad(loss(outputs), [x, *network.parameters()]))


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, two, **EXACT)


class TestAgainstTheExpression:
    @pytest.mark.parametrize("scale", [Scale.xavier, Scale.weight_rms])
    @pytest.mark.parametrize("training", [True, False])
    @BOTH_SPREADS
    @EVERY_NETWORK
    def test_every_gradient(
        self, which: str, name: str, training: bool, scale: Scale, rule_config: Rule
    ) -> None:
        converted, plain = pair(which, rule_config(name, scale))
        matrices = projections(converted)
        for n in (3, 1, 5):  # whatever the example's batch was; BatchNorm's batch of one in eval mode
            x = gaussian(n, 3, 8, 8, seed=n).requires_grad_()
            converted.train(training)
            plain.train(training)
            expected = gradients(plain, direct(plain, matrices, x), x)
            assert_equal(gradients(converted, converted(x), x), expected)

    @BOTH_SPREADS
    @EVERY_NETWORK
    def test_each_backward_uses_the_error_of_its_own_forward(
        self, which: str, name: str, rule_config: Rule
    ) -> None:
        converted, plain = (each.eval() for each in pair(which, rule_config(name)))
        matrices = projections(converted)
        batches = [gaussian(n, 3, 8, 8, seed=n).requires_grad_() for n in (2, 4)]
        losses = [loss_of, lambda logits: logits.square().sum()]
        outputs = [converted(x) for x in batches]  # both forwards come first
        for x, output, loss in zip(batches, outputs, losses, strict=True):
            expected = gradients(plain, direct(plain, matrices, x), x, loss)
            assert_equal(gradients(converted, output, x, loss), expected)

    @BOTH_SPREADS
    def test_an_image_without_a_batch(self, name: str, rule_config: Rule) -> None:
        converted = mlp()
        plain = copy.deepcopy(converted)
        convert(converted, rule_config(name), seed=0, example=gaussian(2, 6))
        x = gaussian(6).requires_grad_()
        expected = gradients(plain, direct(plain, projections(converted), x), x, log_sum)
        assert_equal(gradients(converted, converted(x), x, log_sum), expected)

    def test_frozen_layers_and_inputs_change_no_other_gradient(self, rule_config: Rule) -> None:
        converted, _ = pair("residual", rule_config("dfa"))
        x = gaussian(3, 3, 8, 8)
        loss_of(converted(x)).backward()
        expected = {name: value.grad for name, value in converted.named_parameters()}
        converted.zero_grad()
        for name, value in converted.named_parameters():
            value.requires_grad_(not name.startswith(("conv1", "layer2", "bn1")))
        loss_of(converted(x)).backward()
        for name, value in converted.named_parameters():
            assert (value.grad is not None) == value.requires_grad
            assert value.grad is None or torch.allclose(value.grad, expected[name], rtol=1e-10, atol=1e-12)


class TestProjections:
    @EVERY_NETWORK
    def test_have_a_value_for_every_unit_or_every_channel(self, which: str, rule_config: Rule) -> None:
        by_unit = projections(pair(which, rule_config("dfa"))[0])
        by_channel = projections(pair(which, rule_config("dfa-channel"))[0])
        for name, matrix in by_channel.items():
            assert matrix.dim() == by_unit[name].dim()
            assert sum(size > 1 for size in matrix.shape[1:]) <= 1
            assert max(matrix.shape[1:]) in by_unit[name].shape[1:]

    def test_of_channels_in_a_convolution_whose_frames_are_folded_into_the_batch(
        self, rule_config: Rule
    ) -> None:
        class Frames(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.head = nn.Conv2d(3, 5, 3), nn.Linear(5, 4)

            def forward(self, x: Tensor) -> Tensor:
                return self.head(self.conv(x.flatten(0, 1)).mean((2, 3)).view(len(x), -1, 5).mean(1))

        network = Frames()
        convert(network, rule_config("dfa-channel"), seed=0, example=torch.rand(2, 7, 3, 8, 8))
        assert network.conv.feedback.projection.shape == (4, 1, 3, 1, 1)

    @pytest.mark.parametrize("scale", list(Scale))
    def test_are_keyed_by_seed_and_layer(self, scale: Scale, rule_config: Rule) -> None:
        def drawn(seed: int) -> list[Tensor]:
            network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
            convert(network, rule_config("dfa", scale), seed, example=torch.rand(2, 4))
            return [layer.feedback.projection for layer in network]

        one, two, other = drawn(0), drawn(0), drawn(1)
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])
        assert len({tuple(matrix.flatten().tolist()) for matrix in [*one, *other]}) == 4

    def test_under_weight_rms_have_the_rms_of_w(self, rule_config: Rule) -> None:
        converted, _ = pair("residual", rule_config("dfa"))
        matrices = projections(converted)
        for name, layer in feedback_layers(converted).items():
            ratio = matrices[name].square().mean() / layer.weight.square().mean()
            assert float(ratio.detach()) == pytest.approx(1, rel=1e-10)


def fail(network: nn.Module) -> None:
    """A forward pass that ends in the middle."""

    def stop(*args: Any) -> None:
        raise ZeroDivisionError

    hook = network.layer2.register_forward_hook(stop)
    with pytest.raises(ZeroDivisionError):
        network(gaussian(3, 3, 8, 8).requires_grad_())
    hook.remove()


def test_a_forward_that_failed_leaves_nothing_to_the_next(rule_config: Rule) -> None:
    converted, plain = pair("residual", rule_config("dfa"))
    fail(converted)
    x = gaussian(5, 3, 8, 8).requires_grad_()
    plain.load_state_dict(converted.state_dict(), strict=False)  # BatchNorm has seen a batch
    expected = gradients(plain, direct(plain, projections(converted), x), x)
    assert_equal(gradients(converted, converted(x), x), expected)


class TestRefusals:
    def test_no_example(self, rule_config: Rule) -> None:
        with pytest.raises(ValueError, match="dfa needs an example batch"):
            convert(mlp(), rule_config("dfa"), seed=0)

    def test_outputs_that_are_not_logits(self, rule_config: Rule) -> None:
        expected = r"dfa needs outputs \(N, classes\), the network gives \(2, 4, 6, 6\)"
        with pytest.raises(RequestError, match=expected):
            convert(nn.Sequential(nn.Conv2d(3, 4, 3)), rule_config("dfa"), 0, example=torch.rand(2, 3, 8, 8))

    def test_a_layer_with_inputs_of_several_sizes(self, rule_config: Rule) -> None:
        class Pyramid(Twice):
            def forward(self, x: Tensor) -> Tensor:
                return self.head(self.shared(F.avg_pool2d(x, 2)).mean((2, 3)) + self.shared(x).mean((2, 3)))

        with pytest.raises(RequestError, match=r"shared has inputs of several sizes.*rule\.exclude"):
            convert(Pyramid(), rule_config("dfa"), seed=0, example=torch.rand(2, 3, 8, 8))
        report = convert(Pyramid(), rule_config("dfa", exclude=["shared"]), 0, example=torch.rand(2, 3, 8, 8))
        assert list(report.feedback) == ["head"]

    @pytest.mark.parametrize("size", [(6, 6), (12, 12), (16, 16), (4, 4), (4, 16)])
    @BOTH_SPREADS
    def test_images_of_another_size(self, name: str, size: tuple[int, int], rule_config: Rule) -> None:
        converted, _ = pair("residual", rule_config(name))
        with pytest.raises(RuntimeError):
            loss_of(converted(gaussian(4, 3, *size).requires_grad_())).backward()

    def test_a_layer_called_outside_the_networks_forward(self, rule_config: Rule) -> None:
        converted, _ = pair("residual", rule_config("dfa"))
        x = gaussian(3, 16, 8, 8)
        with pytest.raises(RuntimeError, match=r"dfa: layer1\.0\.conv1 was called outside the network's"):
            converted.layer1(x.requires_grad_())
        with torch.no_grad():
            assert converted.layer1(x).shape == (3, 16, 8, 8)
        assert converted(gaussian(3, 3, 8, 8)).shape == (3, 4)

    def test_outside_the_forward_after_one_that_failed(self, rule_config: Rule) -> None:
        converted, _ = pair("residual", rule_config("dfa"))
        fail(converted)
        with pytest.raises(RuntimeError, match="outside the network's forward"):
            converted.layer1(gaussian(3, 16, 8, 8).requires_grad_())

    @pytest.mark.parametrize("first", ["conv", "activation"])
    @pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
    def test_reentrant_checkpointing(self, first: str, rule_config: Rule) -> None:
        """Whatever comes first in the part that is computed once more."""

        class Checkpointed(CifarResNet):
            def forward(self, x: Tensor) -> Tensor:
                x = self.bn1(self.conv1(x))
                x = F.relu(x) if first == "conv" else x
                x = checkpoint(
                    lambda x: self.layer1(x if first == "conv" else F.relu(x)), x, use_reentrant=True
                )
                return self.linear(self.layer3(self.layer2(x)).mean((2, 3)))

        network = Checkpointed(blocks=1, channels=3, outputs=4)
        convert(network, rule_config("dfa"), seed=0, example=torch.rand(2, 3, 8, 8))
        with pytest.raises(RuntimeError, match=r"layer1\.0\.conv1.*use_reentrant=False"):
            loss_of(network(torch.rand(2, 3, 8, 8))).backward()
        with torch.no_grad():
            assert network(torch.rand(2, 3, 8, 8)).shape == (2, 4)

    def test_a_part_without_gradients_in_a_forward_that_has_them_is_none(self, rule_config: Rule) -> None:
        class Frozen(CifarResNet):
            def forward(self, x: Tensor) -> Tensor:
                with torch.no_grad():
                    x = self.layer1(F.relu(self.bn1(self.conv1(x))))
                return self.linear(self.layer3(self.layer2(x)).mean((2, 3)))

        network = Frozen(blocks=1, channels=3, outputs=4)
        convert(network, rule_config("dfa"), seed=0, example=torch.rand(2, 3, 8, 8))
        loss_of(network(torch.rand(2, 3, 8, 8))).backward()
        assert network.layer1[0].conv1.weight.grad is None
        assert network.layer2[0].conv1.weight.grad is not None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
@BOTH_SPREADS
@EVERY_NETWORK
def test_a_copy_has_an_error_of_its_own(which: str, name: str, copied: Any, rule_config: Rule) -> None:
    converted, _ = pair(which, rule_config(name))
    x = gaussian(3, 3, 8, 8).requires_grad_()
    other = copied(converted.eval())
    outputs = [converted(x), other(x)]
    expected = gradients(converted, outputs[0], x)
    assert_equal(gradients(other, outputs[1], x), expected)
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            tensor.zero_()
    assert_equal(gradients(converted, converted(x), x), expected)


@EVERY_NETWORK
def test_the_state_dict_brings_the_projections_along(which: str, rule_config: Rule) -> None:
    one, two = pair(which, rule_config("dfa"))[0].eval(), pair(which, rule_config("bp"))[0].eval()
    convert(two, rule_config("dfa"), seed=1, example=gaussian(3, 3, 8, 8))
    x = gaussian(3, 3, 8, 8).requires_grad_()
    expected = gradients(one, one(x), x)
    assert not torch.allclose(gradients(two, two(x), x)[0], expected[0])
    two.load_state_dict(one.state_dict())
    assert_equal(gradients(two, two(x), x), expected)


@EVERY_NETWORK
def test_logits_are_bit_equal_in_either_mode(which: str, rule_config: Rule) -> None:
    converted, plain = pair(which, rule_config("dfa"))
    x = gaussian(3, 3, 8, 8)
    for training in (True, False):
        assert torch.equal(converted.train(training)(x), plain.train(training)(x))
    for one, two in zip(
        plain.buffers(), (b for n, b in converted.named_buffers() if ".feedback." not in n), strict=True
    ):
        assert torch.equal(one, two)
