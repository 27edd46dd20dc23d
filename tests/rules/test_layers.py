"""Every converted layer against autograd of an expression whose input gradient travels through V alone.

``f(x.detach(), W) + f(x, V.detach()) - f(x, V.detach()).detach()``
"""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from sstune.rules import FEEDBACKS, begin_step, convert, feedback_layers
from sstune.schema import RuleConfig, Scale

Rule = Callable[..., RuleConfig]
Case = tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, Any]]

RULES = [(name, scale) for name in FEEDBACKS for scale in Scale if name != "sham" or scale is Scale.unit]
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def case(
    layer: Callable[..., nn.Module], *args: Any, x: tuple[int, ...], call: Any = None, **kwargs: Any
) -> Case:
    return (lambda: layer(*args, **kwargs)), x, call or {}


PADDING_MODES = ["zeros", "reflect", "replicate", "circular"]

CASES: dict[str, Case] = {
    "linear-1d": case(nn.Linear, 5, 3, x=(5,)),
    "linear-2d": case(nn.Linear, 5, 3, x=(4, 5)),
    "linear-3d": case(nn.Linear, 5, 3, x=(2, 4, 5)),
    "linear-4d": case(nn.Linear, 5, 3, x=(2, 3, 2, 5)),
    "linear-out-1": case(nn.Linear, 5, 1, x=(4, 5)),
    "linear-out-1-1d": case(nn.Linear, 5, 1, x=(5,)),
    "linear-in-1": case(nn.Linear, 1, 3, x=(4, 1)),
    "linear-no-bias": case(nn.Linear, 5, 3, bias=False, x=(4, 5)),
    "linear-one": case(nn.Linear, 5, 3, x=(1, 5)),
    "linear-none": case(nn.Linear, 5, 3, x=(0, 5)),
    "conv1d": case(nn.Conv1d, 2, 3, 3, stride=2, padding=2, dilation=2, x=(2, 2, 9)),
    "conv1d-unbatched": case(nn.Conv1d, 2, 3, 3, padding=1, x=(2, 7)),
    "conv1d-same": case(nn.Conv1d, 2, 3, 3, padding="same", dilation=2, bias=False, x=(2, 2, 7)),
    "conv1d-same-even": case(nn.Conv1d, 2, 3, 4, padding="same", x=(2, 2, 7)),
    "conv2d": case(nn.Conv2d, 3, 4, 3, x=(2, 3, 6, 5)),
    "conv2d-1x1": case(nn.Conv2d, 3, 4, 1, stride=2, bias=False, x=(2, 3, 5, 5)),
    "conv2d-stride": case(nn.Conv2d, 3, 4, (3, 2), stride=(2, 3), padding=(1, 0), x=(2, 3, 7, 8)),
    "conv2d-dilation": case(nn.Conv2d, 3, 4, (2, 3), dilation=(3, 2), padding=(2, 1), x=(2, 3, 7, 8)),
    "conv2d-groups": case(nn.Conv2d, 4, 6, 3, groups=2, padding=1, x=(2, 4, 5, 5)),
    "conv2d-depthwise": case(nn.Conv2d, 4, 8, 3, groups=4, stride=2, padding=1, x=(2, 4, 5, 5)),
    "conv2d-no-bias": case(nn.Conv2d, 3, 4, 3, padding=1, bias=False, x=(2, 3, 5, 5)),
    "conv2d-one": case(nn.Conv2d, 3, 4, 3, padding=1, x=(1, 3, 5, 5)),
    "conv2d-unbatched": case(nn.Conv2d, 3, 4, 3, padding=1, x=(3, 5, 5)),
    "conv2d-valid": case(nn.Conv2d, 3, 4, 3, padding="valid", stride=2, x=(2, 3, 6, 6)),
    "conv2d-same-odd": case(nn.Conv2d, 3, 4, 3, padding="same", x=(2, 3, 5, 6)),
    "conv2d-same-even": case(nn.Conv2d, 3, 4, (2, 4), padding="same", dilation=(3, 1), x=(2, 3, 5, 6)),
    "conv3d": case(
        nn.Conv3d, 2, 4, 2, stride=(1, 2, 1), padding=1, dilation=(1, 1, 2), groups=2, x=(2, 2, 3, 4, 4)
    ),
    "conv3d-unbatched": case(nn.Conv3d, 2, 3, 2, bias=False, x=(2, 3, 3, 3)),
    "conv3d-same": case(nn.Conv3d, 1, 2, (1, 2, 3), padding="same", x=(1, 1, 3, 3, 3)),
    **{
        f"conv1d-{mode}": case(nn.Conv1d, 2, 3, 3, padding=2, stride=2, padding_mode=mode, x=(2, 2, 6))
        for mode in PADDING_MODES
    },
    **{
        f"conv2d-{mode}": case(nn.Conv2d, 2, 3, (3, 2), padding=(2, 1), padding_mode=mode, x=(2, 2, 5, 4))
        for mode in PADDING_MODES
    },
    **{
        f"conv2d-same-{mode}": case(nn.Conv2d, 2, 3, (4, 3), padding="same", padding_mode=mode, x=(2, 5, 6))
        for mode in PADDING_MODES
    },
    **{
        f"conv2d-valid-{mode}": case(nn.Conv2d, 2, 3, 2, padding="valid", padding_mode=mode, x=(1, 2, 4, 4))
        for mode in PADDING_MODES
    },
    **{
        f"conv3d-{mode}": case(nn.Conv3d, 1, 2, 2, padding=(1, 0, 1), padding_mode=mode, x=(1, 1, 3, 3, 3))
        for mode in PADDING_MODES
    },
    "transpose1d": case(nn.ConvTranspose1d, 2, 3, 3, stride=3, output_padding=2, padding=1, x=(2, 2, 4)),
    "transpose1d-size": case(nn.ConvTranspose1d, 2, 3, 3, stride=2, x=(2, 2, 4), call={"output_size": [10]}),
    "transpose2d": case(
        nn.ConvTranspose2d, 4, 6, (3, 2), stride=(2, 3), padding=(1, 0), output_padding=(1, 2), groups=2,
        dilation=(2, 1), x=(2, 4, 3, 4),
    ),
    "transpose2d-size": case(
        nn.ConvTranspose2d, 3, 2, 3, stride=2, padding=1, bias=False, x=(2, 3, 4, 4),
        call={"output_size": [8, 7]},
    ),
    "transpose2d-unbatched": case(nn.ConvTranspose2d, 3, 2, 2, stride=2, x=(3, 3, 3)),
    "transpose3d": case(nn.ConvTranspose3d, 2, 1, 2, stride=2, output_padding=1, x=(1, 2, 2, 2, 3)),
    "transpose3d-size": case(
        nn.ConvTranspose3d, 2, 2, 2, stride=2, groups=2, x=(1, 2, 2, 2, 2), call={"output_size": [4, 5, 4]}
    ),
}  # fmt: skip


def feedback_of(rule: RuleConfig, layer: nn.Module) -> Tensor:
    """V by its definition: only the drawn numbers are taken from the layer."""
    weight: Tensor = layer.weight.detach()
    if rule.name == "sham":
        return weight
    out, into, *kernel = weight.shape
    taps = math.prod(kernel)
    scale = {
        Scale.unit: 1.0,
        Scale.weight_rms: math.sqrt(float(weight.square().mean())),
        Scale.xavier: math.sqrt(2 / (taps * (into + out))),
        Scale.he_fan_out: math.sqrt(2 / (taps * out)) if kernel else 1 / math.sqrt(into),
    }[rule.scale]
    if rule.name == "usf":
        return scale * weight.sign()
    magnitude: Tensor = layer.feedback.magnitude
    return scale * magnitude * (1 if rule.name == "fa" else weight.sign())


def oracle(plain: nn.Module, matrix: Tensor, x: Tensor, call: dict[str, Any] | None = None) -> Tensor:
    def f(x: Tensor, weight: Any, bias: Any) -> Tensor:
        parameters = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        result: Tensor = functional_call(plain, parameters, (x,), call)
        return result

    weight, bias = plain.weight, plain.bias
    through_v = f(x, matrix.detach(), None if bias is None else bias.detach())
    return f(x.detach(), weight, bias) + through_v - through_v.detach()


def assert_equals_oracle(layer: nn.Module, rule: RuleConfig, x: Tensor, call: dict[str, Any]) -> None:
    """Output, dx, dW and db; W has a zero, and not the values that it had at conversion."""
    plain = copy.deepcopy(layer)
    convert(nn.ModuleList([layer]), rule, seed=3)
    for module in (layer, plain):
        weight: Any = module.weight
        with torch.no_grad():
            weight.mul_(-1.5)[0, 0] *= torch.arange(weight[0, 0].numel()).reshape(weight[0, 0].shape)
    operands = [x.clone(memory_format=torch.preserve_format).requires_grad_() for _ in range(2)]
    outputs = [layer(operands[0], **call), oracle(plain, feedback_of(rule, layer), operands[1], call)]
    upstream = torch.from_numpy(np.random.default_rng(1).normal(size=outputs[0].shape))
    found = []
    for module, operand, output in zip((layer, plain), operands, outputs, strict=True):
        output.backward(upstream)
        gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
        found.append({"output": output.detach(), "dx": operand.grad, **gradients})
    assert found[0].keys() == found[1].keys()
    for name, expected in found[1].items():
        np.testing.assert_allclose(found[0][name], expected, **EXACT, err_msg=name)


def gaussian(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=shape)).to(dtype)


def is_defined(layer: str, scale: Scale) -> bool:
    """Xiao et al. have no transposed convolution, and its C_out is where torch's fan-out has C_in."""
    return not (layer.startswith("transpose") and scale is Scale.he_fan_out)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # the plain layer's
@pytest.mark.parametrize(
    ("which", "name", "scale"),
    [(which, *rule) for which in CASES for rule in RULES if is_defined(which, rule[1])],
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
        chosen = [rule for rule in RULES if is_defined("transpose" if transposed else "conv", rule[1])]
        rule = rule_config(*data.draw(st.sampled_from(chosen)))
        assert_equals_oracle(layer.double(), rule, gaussian(*batch, into, *size), {})


@pytest.mark.parametrize("name", list(FEEDBACKS))
@pytest.mark.parametrize("groups", [1, 4])
def test_channels_last(name: str, groups: int, rule_config: Rule) -> None:
    layer = nn.Conv2d(4, 8, 3, padding=1, stride=2, groups=groups).double()
    layer.to(memory_format=torch.channels_last)
    x = gaussian(2, 4, 6, 6).to(memory_format=torch.channels_last)
    assert layer(x).is_contiguous(memory_format=torch.channels_last)
    assert_equals_oracle(layer, rule_config(name), x, {})
    assert layer(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", list(FEEDBACKS))
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


@pytest.mark.parametrize("name", list(FEEDBACKS))
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
        if isinstance(tensor, Tensor)
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
        actual = self.gradients(network, x)
        matrix = feedback_of(rule, layer)
        operand = x.clone().requires_grad_()
        middle = torch.tanh(oracle(plain, matrix, operand))
        oracle(plain, matrix, middle).square().sum().backward()
        for found, expected in zip(actual, [operand.grad, plain.weight.grad, plain.bias.grad], strict=True):
            np.testing.assert_allclose(found, expected, **EXACT)

    @pytest.mark.parametrize("name", list(FEEDBACKS))
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


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding="same", groups=2),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 3, stride=2, output_padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 18 * 18, 5),
    )


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
            found.append([outputs.detach(), operand.grad, *(p.grad for p in network.parameters())])
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


@pytest.mark.parametrize(
    ("name", "autocast"), [("usf", False), ("frsf", False), ("fa", False), ("brsf", False), ("usf", True)]
)
def test_compiled_without_a_graph_break_equals_eager(name: str, autocast: bool, rule_config: Rule) -> None:
    network = small_network()
    convert(network, rule_config(name), seed=0)
    torch.compiler.reset()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    x = gaussian(2, 3, 8, 8, dtype=torch.float32)
    for _ in range(3):  # signs, scale and magnitudes of brsf change between steps
        begin_step(network)
        found = []
        for each in (network, compiled):
            network.zero_grad()
            operand = x.clone().requires_grad_()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                outputs = each(operand)
            outputs.square().sum().backward()
            found.append([outputs.detach(), operand.grad, *(p.grad for p in network.parameters())])
        for eager, other in zip(*found, strict=True):
            torch.testing.assert_close(other, eager, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.sub_(0.05 * parameter.grad.sign())
