"""Every converted layer against autograd of an expression whose input gradient travels through V alone."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import CASES, small_network
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import EXACT, assert_equals_oracle, feedback_of, gaussian, oracle
from torch import Tensor, nn
from variants import LOCAL, RULES

from sstune.rules import begin_step, convert, feedback_layers
from sstune.schema import RuleConfig, Scale

Rule = Callable[..., RuleConfig]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # the plain layer's
@pytest.mark.parametrize(
    ("which", "name", "scale"),
    [(which, *rule) for which in CASES for rule in RULES],
)
def test_layer_equals_oracle(which: str, name: str, scale: Scale, rule_config: Rule) -> None:
    make, shape, call = CASES[which]
    torch.manual_seed(0)
    assert_equals_oracle(make().double(), rule_config(name, scale), gaussian(*shape), call)


class TestShapesByHypothesis:
    @settings(deadline=None)
    @given(
        shape=st.lists(st.integers(0, 4), max_size=3),
        into=st.integers(1, 6),
        out=st.integers(1, 6),
        bias=st.booleans(),
        chosen=st.sampled_from(RULES),
    )
    def test_linear(
        self, shape: list[int], into: int, out: int, bias: bool, chosen: tuple[str, Scale], rule_config: Rule
    ) -> None:
        layer = nn.Linear(into, out, bias=bias, dtype=torch.float64)
        assert_equals_oracle(layer, rule_config(*chosen), gaussian(*shape, into), {})

    @settings(deadline=None)
    @given(data=st.data())
    def test_convolution(self, data: st.DataObject, rule_config: Rule) -> None:
        def draw(low: int, high: int) -> int:
            return data.draw(st.integers(low, high))

        spatial, transposed = draw(1, 3), data.draw(st.booleans())
        groups = draw(1, 3)
        kernel, stride, dilation, padding = (
            tuple(draw(low, high) for _ in range(spatial)) for low, high in ((1, 3), (1, 3), (1, 2), (0, 2))
        )
        extent = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        size = [max(1, e + draw(0, 3) - 2 * p) for e, p in zip(extent, padding, strict=True)]
        options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
        kinds: list[Any]
        if transposed:
            kinds = [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]
            size = [n + 2 * p for n, p in zip(size, padding, strict=True)]
            options["output_padding"] = tuple(
                draw(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True)
            )
        else:
            kinds = [nn.Conv1d, nn.Conv2d, nn.Conv3d]
            options["padding_mode"] = data.draw(st.sampled_from(["zeros", "replicate"]))
        into, out = groups * draw(1, 2), groups * draw(1, 2)
        layer = kinds[spatial - 1](into, out, kernel, groups=groups, bias=data.draw(st.booleans()), **options)
        batch = data.draw(st.sampled_from([(), (1,), (3,)]))
        rule = rule_config(*data.draw(st.sampled_from(RULES)))
        assert_equals_oracle(layer.double(), rule, gaussian(*batch, into, *size), {})


@pytest.mark.parametrize("name", LOCAL)
@pytest.mark.parametrize("groups", [1, 4])
def test_channels_last(name: str, groups: int, rule_config: Rule) -> None:
    layer = nn.Conv2d(4, 8, 3, padding=1, stride=2, groups=groups).double()
    layer.to(memory_format=torch.channels_last)
    x = gaussian(2, 4, 6, 6).to(memory_format=torch.channels_last)
    assert layer(x).is_contiguous(memory_format=torch.channels_last)
    assert_equals_oracle(layer, rule_config(name), x, {})
    assert layer(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", LOCAL)
def test_moving_a_converted_layer_to_channels_last_changes_no_gradient(name: str, rule_config: Rule) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(4, 8, 3).double())
    convert(network, rule_config(name), seed=0)
    moved = copy.deepcopy(network).to(memory_format=torch.channels_last)
    gradients = []
    for each, layout in ((network, torch.contiguous_format), (moved, torch.channels_last)):
        x = gaussian(2, 4, 5, 5).to(memory_format=layout).requires_grad_()
        each(x).square().sum().backward()
        gradients.append(x.grad)
    np.testing.assert_allclose(gradients[0], gradients[1], **EXACT)


@pytest.mark.parametrize("name", LOCAL)
@pytest.mark.parametrize("layer", [nn.Linear, lambda i, o: nn.Conv2d(i, o, 3, padding="same")])
def test_training_goes_on_in_another_precision(name: str, layer: Any, rule_config: Rule) -> None:
    """``.to(float64)`` after a conversion in float32: feedback moves along."""
    torch.manual_seed(0)
    network = nn.Sequential(layer(4, 4))
    rule = rule_config(name, Scale.xavier)
    convert(network, rule, seed=0)
    network.to(torch.float64)
    begin_step(network)
    converted = network[0]
    assert all(
        tensor.dtype == torch.float64
        for tensor in converted.state_dict().values()
        if isinstance(tensor, Tensor) and tensor.is_floating_point()
    )
    x = gaussian(2, 4, 4, 4).requires_grad_()
    expected = x.detach().clone().requires_grad_()
    upstream = gaussian(2, 4, 4, 4)
    converted(x).backward(upstream)
    plain = layer(4, 4).double()
    plain.load_state_dict({key: converted.state_dict()[key] for key in ("weight", "bias")})
    oracle(plain, feedback_of(rule, converted), expected).backward(upstream)
    np.testing.assert_allclose(x.grad, expected.grad, **EXACT)


class TestReuse:
    """A layer that is called twice, copied, or pickled."""

    @staticmethod
    def gradients(network: nn.Module, x: Tensor) -> list[Tensor]:
        network.zero_grad()
        x = x.clone().requires_grad_()
        network(x).square().sum().backward()
        assert x.grad is not None
        return [x.grad, *(p.grad.clone() for p in network.parameters() if p.grad is not None)]

    @pytest.mark.parametrize(("name", "scale"), RULES, ids=lambda value: str(value))
    def test_a_layer_used_twice(self, name: str, scale: Scale, rule_config: Rule) -> None:
        torch.manual_seed(0)
        layer, x = nn.Linear(4, 4, dtype=torch.float64), gaussian(3, 4)
        plain = copy.deepcopy(layer)
        network = nn.Sequential(layer, nn.Tanh(), layer)
        rule = rule_config(name, scale)
        convert(network, rule, seed=0)
        actual = self.gradients(network, x)[:3]
        matrix = feedback_of(rule, layer)
        operand = x.clone().requires_grad_()
        middle = torch.tanh(oracle(plain, matrix, operand))
        oracle(plain, matrix, middle).square().sum().backward()
        for found, expected in zip(actual, [operand.grad, plain.weight.grad, plain.bias.grad], strict=True):
            np.testing.assert_allclose(found, expected, **EXACT)

    @pytest.mark.parametrize("name", LOCAL)
    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
    def test_a_copy_is_equal_and_independent(self, name: str, copied: Any, rule_config: Rule) -> None:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).double()
        convert(network, rule_config(name), seed=0)
        x = gaussian(2, 1, 4, 4)
        expected = self.gradients(network, x)
        other = copied(network)
        assert all(torch.equal(a, b) for a, b in zip(self.gradients(other, x), expected, strict=True))
        with torch.no_grad():
            for tensor in (*other.parameters(), *other.buffers()):
                tensor.zero_()
        assert all(torch.equal(a, b) for a, b in zip(self.gradients(network, x), expected, strict=True))

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
    def test_a_copy_draws_what_the_original_draws(self, copied: Any, rule_config: Rule) -> None:
        network = nn.Sequential(nn.Linear(4, 4))
        convert(network, rule_config("brsf"), seed=0)
        begin_step(network)
        other = copied(network)
        before = feedback_layers(other)["0"].feedback.magnitude.clone()
        begin_step(network)
        begin_step(other)
        magnitudes = [feedback_layers(each)["0"].feedback.magnitude for each in (network, other)]
        assert torch.equal(*magnitudes)
        assert not torch.equal(before, magnitudes[1])


class TestAutocast:
    @pytest.mark.parametrize("which", ["linear-3d", "conv2d-groups", "conv2d-reflect", "transpose2d"])
    @pytest.mark.parametrize(("name", "scale"), RULES)
    def test_bf16_is_close_to_float32(self, which: str, name: str, scale: Scale, rule_config: Rule) -> None:
        make, shape, _ = CASES[which]
        torch.manual_seed(0)
        network = nn.Sequential(make())
        convert(network, rule_config(name, scale), seed=0)
        x = gaussian(*shape).float()
        upstream = gaussian(*network(x).shape)
        found = []
        for enabled in (False, True):
            network.zero_grad()
            operand = x.clone().requires_grad_()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                outputs = network(operand)
            assert outputs.dtype == (torch.bfloat16 if enabled else torch.float32)
            outputs.backward(upstream.to(outputs.dtype))
            gradients = [p.grad for p in network.parameters() if p.dim() > 0]  # but c's, which is zero
            found.append([outputs.detach(), operand.grad, *gradients])
        for i, (full, half) in enumerate(zip(*found, strict=True)):
            assert i == 0 or half.dtype == torch.float32
            assert 0 < float((half - full).norm() / full.norm()) < 0.01

    def test_sham_rounds_as_a_plain_network_does(self, rule_config: Rule) -> None:
        plain = small_network()
        sham = copy.deepcopy(plain)
        convert(sham, rule_config("sham"), seed=0)
        found = []
        for network in (plain, sham):
            x = gaussian(4, 3, 8, 8, dtype=torch.float32).requires_grad_()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                outputs = network(x)
            outputs.backward(gaussian(4, 5).to(outputs.dtype))
            found.append([outputs.detach(), x.grad, *(parameter.grad for parameter in network.parameters())])
        for expected, actual in zip(*found, strict=True):
            assert expected is not None
            assert actual is not None
            assert actual.dtype == expected.dtype
            assert float((actual.float() - expected.float()).norm() / expected.float().norm()) < 0.01

    def test_float64_stays_float64(self, rule_config: Rule) -> None:
        network = small_network().double()
        convert(network, rule_config("usf"), seed=0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert network(gaussian(1, 3, 8, 8)).dtype == torch.float64
