"""Conversion: what it changes, what it must not change, and what it refuses."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from variants import DFA, EVERY, IS_BP, LOCAL, WITH_PARAMETERS

from sstune.backbones.cifar_resnet import CifarResNet
from sstune.rules import (
    begin_step,
    convert,
    exact_gradients,
    feedback_layers,
    feedback_parameters,
    plain_state_dict,
)
from sstune.rules.layers import CONVERTED
from sstune.schema import BrsfConfig, RequestError, RuleConfig, Scale

Rule = Callable[..., RuleConfig]


def resnet(seed: int = 0) -> CifarResNet:
    torch.manual_seed(seed)
    return CifarResNet(blocks=1, channels=3, outputs=10)


CONVOLUTIONS = ["conv1", *(f"layer{stage}.0.conv{i}" for stage in (1, 2, 3) for i in (1, 2))]
NORMS = [name.replace("conv", "bn") for name in CONVOLUTIONS]


def images(n: int = 4, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def own_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Without those that trained feedback adds."""
    return {name: value for name, value in network.named_parameters() if ".feedback." not in name}


def gradients(network: nn.Module, x: Tensor) -> list[Tensor]:
    """Of the input and the network's own parameters, for a loss that is the same for every network."""
    network.zero_grad()
    x = x.clone().requires_grad_()
    F.cross_entropy(network(x), torch.arange(len(x))).backward()
    assert x.grad is not None
    found = [x.grad]
    for parameter in own_parameters(network).values():
        assert parameter.grad is not None
        found.append(parameter.grad.clone())
    return found


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class TestSettingsFromPython:
    """Settings that a script makes are held to the types that a command line is held to."""

    @pytest.mark.parametrize("scale", Scale)
    def test_a_choice_may_be_given_by_its_name(self, scale: Scale) -> None:
        by_name, by_value = resnet(), resnet()
        convert(by_name, RuleConfig(name="usf", scale=str(scale)), seed=0)  # type: ignore[arg-type]
        convert(by_value, RuleConfig(name="usf", scale=scale), seed=0)
        assert equal(gradients(by_name, images()), gradients(by_value, images()))

    @pytest.mark.parametrize(
        ("rule", "said"),
        [
            (RuleConfig(name="usf", scale="nonsense"), "rule.scale: .*'nonsense', expected .*xavier"),  # type: ignore[arg-type]
            (RuleConfig(name="usf", scale=None), "rule.scale: .*None"),  # type: ignore[arg-type]
            (RuleConfig(name="usf", include="head"), "rule.include: .*list"),  # type: ignore[arg-type]
            (BrsfConfig(name="brsf", redraw="always"), "rule.redraw: .*'always', expected .*forward"),  # type: ignore[arg-type]
            (RuleConfig(name="brsf"), "rule.name: brsf needs a BrsfConfig, not a RuleConfig"),
            (RuleConfig(name="urf"), "rule.name: unknown 'urf', did you mean 'usf'"),
        ],
    )
    def test_what_is_wrong_is_named_and_nothing_is_converted(self, rule: RuleConfig, said: str) -> None:
        network = resnet()
        with pytest.raises(RequestError, match=said):
            convert(network, rule, seed=0)
        assert feedback_layers(network) == {}


class TestReport:
    def test_names_feedback_and_exact_layers_with_their_classes(self, rule_config: Rule) -> None:
        report = convert(resnet(), rule_config("usf"), seed=0)
        assert report.feedback == {**dict.fromkeys(CONVOLUTIONS, "Conv2d"), "linear": "Linear"}
        assert report.exact == dict.fromkeys(NORMS, "BatchNorm2d")
        assert str(report) == "feedback in 7 Conv2d, 1 Linear; exact derivatives in 7 BatchNorm2d"

    def test_bp_converts_nothing(self, rule_config: Rule) -> None:
        network = resnet()
        report = convert(network, rule_config("bp"), seed=0)
        assert report.feedback == {}
        assert set(report.exact) == {*CONVOLUTIONS, *NORMS, "linear"}
        assert str(report) == "feedback in no layer; exact derivatives in 7 Conv2d, 7 BatchNorm2d, 1 Linear"
        assert feedback_layers(network) == {}
        assert type(network.conv1) is nn.Conv2d


class TestSelection:
    @pytest.mark.parametrize(
        ("include", "exclude", "expected"),
        [
            (["*"], [], [*CONVOLUTIONS, "linear"]),
            (["*"], ["head"], CONVOLUTIONS),
            (["*"], ["stem"], [*CONVOLUTIONS[1:], "linear"]),
            (["*"], ["head", "stem"], CONVOLUTIONS[1:]),
            (["head"], [], ["linear"]),
            (["stem", "linear"], [], ["conv1", "linear"]),
            (["layer2.*"], [], ["layer2.0.conv1", "layer2.0.conv2"]),
            (["layer2"], [], ["layer2.0.conv1", "layer2.0.conv2"]),
            (["layer2.0", "conv1"], [], ["conv1", "layer2.0.conv1", "layer2.0.conv2"]),
            (["*.conv1"], [], ["layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"]),
            (["layer[13].0.conv2"], [], ["layer1.0.conv2", "layer3.0.conv2"]),
            (["layer?.0.conv?"], ["layer1"], [f"layer{s}.0.conv{i}" for s in (2, 3) for i in (1, 2)]),
            (["*"], ["layer*", "*bn*", "linear"], ["conv1"]),
        ],
    )
    def test_by_globs_and_aliases(
        self, include: list[str], exclude: list[str], expected: list[str], rule_config: Rule
    ) -> None:
        network = resnet()
        rule = rule_config("usf", include=include, exclude=exclude)
        report = convert(network, rule, 0, {"head": "linear", "stem": "conv1"})
        assert list(report.feedback) == expected
        assert list(feedback_layers(network)) == expected
        kept = {name for name, module in network.named_modules() if type(module) in CONVERTED}
        assert kept == {*CONVOLUTIONS, "linear"} - set(expected)
        assert set(report.exact) == {*CONVOLUTIONS, *NORMS, "linear"} - set(expected)

    def test_a_module_called_head_is_meant_before_the_alias(self, rule_config: Rule) -> None:
        network = nn.ModuleDict({"head": nn.Linear(2, 2), "fc": nn.Linear(2, 2)})
        report = convert(network, rule_config("usf", include=["head"]), 0, {"head": "fc"})
        assert list(report.feedback) == ["head"]

    @pytest.mark.parametrize(
        ("include", "exclude", "message"),
        [
            (["conv9"], [], r"rule\.include: 'conv9' matches no module, did you mean 'conv1'\?"),
            (["*"], ["haed"], r"rule\.exclude: 'haed' matches no module, did you mean 'head'\?"),
            (["*"], ["vit.*"], r"rule\.exclude: 'vit\.\*' matches no module, the nearest known: conv1"),
            (["layer1", "layer9.*"], [], r"rule\.include: 'layer9\.\*' matches no module"),
            (["*"], ["*"], r"no layer is left to convert by \['\*'\] less \['\*'\]"),
            (["*bn*"], [], r"no layer is left to convert"),
            (["bn1"], [], r"rule\.include: bn1 \(BatchNorm2d\) cannot be converted"),
            (["*", "layer1.0.bn1"], [], r"layer1\.0\.bn1 \(BatchNorm2d\) cannot be converted"),
        ],
    )
    def test_a_pattern_that_does_nothing_is_refused(
        self, include: list[str], exclude: list[str], message: str, rule_config: Rule
    ) -> None:
        network = resnet()
        with pytest.raises(RequestError, match=message):
            convert(network, rule_config("usf", include=include, exclude=exclude), 0, {"head": "linear"})
        assert feedback_layers(network) == {}


class WeightStandardizedConv(nn.Conv2d):
    """Computes with other weights than its own, so V from its weights would be wrong."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight - self.weight.mean(), self.bias)


class TestRefusals:
    @pytest.mark.parametrize(
        ("layer", "names"),
        [
            (WeightStandardizedConv(3, 3, 3), r"1 \(WeightStandardizedConv\)"),
            (nn.MultiheadAttention(4, 2), r"1 \(MultiheadAttention\)"),
            (nn.TransformerEncoderLayer(4, 2), r"1\.self_attn \(MultiheadAttention\)"),
            (nn.LazyLinear(3), r"1 \(LazyLinear\)"),
            (nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)), r"1 \(ParametrizedLinear\)"),
        ],
    )
    def test_layers_whose_derivative_would_bypass_the_feedback(
        self, layer: nn.Module, names: str, rule_config: Rule
    ) -> None:
        network = nn.Sequential(nn.Linear(3, 3), layer)
        with pytest.raises(RequestError, match=f"{names} cannot be converted.*add it to rule.exclude"):
            convert(network, rule_config("usf"), seed=0)
        assert feedback_layers(network) == {}
        if not isinstance(layer, nn.TransformerEncoderLayer):
            assert list(convert(network, rule_config("usf", exclude=["1"]), seed=0).feedback) == ["0"]

    def test_an_excluded_attention_leaves_the_rest_of_its_block(self, rule_config: Rule) -> None:
        network = nn.Sequential(nn.TransformerEncoderLayer(4, 2, dim_feedforward=8))
        report = convert(network, rule_config("usf", exclude=["*.self_attn"]), seed=0)
        assert list(report.feedback) == ["0.linear1", "0.linear2"]
        assert "0.self_attn.out_proj" in report.exact

    def test_a_second_conversion(self, rule_config: Rule) -> None:
        network = resnet()
        convert(network, rule_config("usf"), seed=0)
        with pytest.raises(RequestError, match=r"conv1 \(FeedbackConv2d\) cannot be converted"):
            convert(network, rule_config("frsf"), seed=0)


@pytest.mark.parametrize("name", ["bp", *EVERY])
class TestForwardIsUntouched:
    def test_parameters_stay_the_same_objects(self, name: str, rule_config: Rule) -> None:
        network = resnet()
        before = dict(network.named_parameters())
        values = {key: value.detach().clone() for key, value in before.items()}
        convert(network, rule_config(name), seed=0, example=images())
        after = own_parameters(network)
        assert list(after) == list(before)
        assert all(after[key] is before[key] for key in before)
        assert all(torch.equal(after[key], values[key]) for key in before)

    def test_an_optimiser_made_before_still_trains(self, name: str, rule_config: Rule) -> None:
        network = resnet()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        convert(network, rule_config(name), seed=0, example=images())
        before = copy.deepcopy(own_parameters(network))
        F.cross_entropy(network(images()), torch.arange(4)).backward()
        optimizer.step()
        assert not any(torch.equal(before[key], value) for key, value in own_parameters(network).items())

    def test_outputs_are_bit_equal(self, name: str, rule_config: Rule) -> None:
        network = resnet().eval()
        expected = network(images())
        convert(network, rule_config(name), seed=0, example=images())
        assert torch.equal(network(images()), expected)
        assert not any(module.training for module in network.modules())

    def test_hooks_and_sharing_survive(self, name: str, rule_config: Rule) -> None:
        network, seen = resnet(), []
        network.conv1.register_forward_hook(lambda module, args, output: seen.append(output.shape))
        convert(network, rule_config(name), seed=0, example=images())
        seen.clear()  # the forward on the example
        network(images())
        assert seen == [(4, 16, 8, 8)]

    def test_global_random_state_is_untouched(self, name: str, rule_config: Rule) -> None:
        network = resnet()
        before = torch.get_rng_state()
        convert(network, rule_config(name), seed=0, example=images())
        begin_step(network)
        gradients(network, images())
        assert torch.equal(torch.get_rng_state(), before)


# What each rule keeps; the others keep nothing.
KEPT = {
    **dict.fromkeys(["frsf", "brsf"], ("magnitude", "_extra_state")),
    **dict.fromkeys(["fa", "fa_signed"], ("frozen",)),
    **dict.fromkeys(["wm", "wm-random"], ("mirrored", "_extra_state")),
    **dict.fromkeys(["kp-random", "pfa_o-random"], ("difference", "decay")),
    "pfa": ("mix",),
    "pfa-random": ("mix", "difference", "decay"),
    **dict.fromkeys(["pfa-literal", "pfa_o-literal"], ("fixed", "trained")),
    "pfa-sparse": ("fixed", "trained", "mask"),
    **dict.fromkeys(DFA, ("projection",)),
}


@pytest.mark.parametrize("name", EVERY)
class TestStateDict:
    def test_a_plain_one_loads_and_comes_back_bit_for_bit(self, name: str, rule_config: Rule) -> None:
        plain, converted = resnet(seed=1), resnet(seed=2)
        convert(converted, rule_config(name), seed=0, example=images())
        feedback = {key: value for key, value in converted.state_dict().items() if ".feedback." in key}
        feedback = copy.deepcopy(feedback)
        converted.load_state_dict(plain.state_dict())
        back = plain_state_dict(converted)
        assert list(back) == list(plain.state_dict())
        assert all(torch.equal(back[key], value) for key, value in plain.state_dict().items())
        for key, value in feedback.items():  # what was drawn at conversion stays
            now = converted.state_dict()[key]
            assert torch.equal(now, value) if isinstance(value, Tensor) else now == value
        third = resnet(seed=3)
        third.load_state_dict(back)
        assert equal(gradients(third, images()), gradients(plain, images()))

    def test_what_else_a_plain_one_lacks_is_still_missed(self, name: str, rule_config: Rule) -> None:
        converted = resnet()
        convert(converted, rule_config(name), seed=0, example=images())
        state = plain_state_dict(converted)
        del state["conv1.weight"]
        with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "conv1.weight"\.'):
            converted.load_state_dict(state)

    def test_keys_besides_the_plain_ones(self, name: str, rule_config: Rule) -> None:
        plain, converted = resnet(), resnet()
        convert(converted, rule_config(name), seed=0, example=images())
        extra = set(converted.state_dict()) - set(plain.state_dict())
        layers = [*CONVOLUTIONS, "linear"]
        assert extra == {f"{layer}.feedback.{kept}" for layer in layers for kept in KEPT.get(name, ())}
        assert set(plain_state_dict(converted)) == set(plain.state_dict())

    def test_a_resumed_network_goes_on_exactly(self, name: str, rule_config: Rule) -> None:
        trained = resnet()
        convert(trained, rule_config(name), seed=0, example=images())
        for _ in range(3):
            begin_step(trained)
        file = io.BytesIO()
        torch.save(trained.state_dict(), file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
        resumed = resnet(seed=5)
        convert(resumed, rule_config(name), seed=0, example=images())
        resumed.load_state_dict(state)
        for _ in range(2):
            assert equal(gradients(resumed, images()), gradients(trained, images()))
            for network in (resumed, trained):
                begin_step(network)

    def test_feedback_is_restored_under_another_seed_too(self, name: str, rule_config: Rule) -> None:
        """Magnitudes come from the file, not from the seed."""
        trained, other = resnet(), resnet(seed=5)
        convert(trained, rule_config(name), seed=0, example=images())
        convert(other, rule_config(name), seed=1, example=images())
        other.load_state_dict(trained.state_dict())
        assert equal(gradients(other, images()), gradients(trained, images()))


@pytest.mark.parametrize("name", LOCAL)
def test_a_layer_under_two_names(name: str, rule_config: Rule) -> None:
    def shared() -> nn.Module:
        layer = nn.Linear(4, 4)
        return nn.ModuleDict({"one": layer, "two": layer})

    plain, converted = shared(), shared()
    convert(converted, rule_config(name), seed=0)
    assert list(plain_state_dict(converted)) == list(plain.state_dict())
    converted.load_state_dict(plain.state_dict())
    plain.load_state_dict(plain_state_dict(converted))


@pytest.mark.parametrize("name", EVERY)
def test_feedback_parameters_are_those_of_trained_feedback(name: str, rule_config: Rule) -> None:
    network = resnet()
    convert(network, rule_config(name), seed=0, example=images())
    named = {id(value) for key, value in network.named_parameters() if ".feedback." in key}
    assert {id(parameter) for parameter in feedback_parameters(network)} == named
    assert len(named) == (8 if name in WITH_PARAMETERS else 0)


class TestExactGradients:
    @pytest.mark.parametrize("name", ["bp", *EVERY])
    def test_are_bit_equal_to_the_plain_networks(self, name: str, rule_config: Rule) -> None:
        plain, converted = resnet(), resnet()
        convert(converted, rule_config(name), seed=0, example=images())
        expected, before = gradients(plain, images()), gradients(converted, images())
        with exact_gradients(converted):
            assert equal(gradients(converted, images()), expected)
        assert equal(gradients(converted, images()), before)
        assert torch.equal(before[0], expected[0]) == (name in ["bp", *IS_BP])

    def test_nest(self, rule_config: Rule) -> None:
        plain, converted = resnet(), resnet()
        convert(converted, rule_config("usf"), seed=0)
        exact, rule = gradients(plain, images()), gradients(converted, images())
        with exact_gradients(converted):
            with exact_gradients(converted):
                assert equal(gradients(converted, images()), exact)
            assert equal(gradients(converted, images()), exact)
        assert equal(gradients(converted, images()), rule)

    def test_end_with_an_exception(self, rule_config: Rule) -> None:
        converted = resnet()
        convert(converted, rule_config("usf"), seed=0)
        rule = gradients(converted, images())
        with pytest.raises(ZeroDivisionError), exact_gradients(converted):
            raise ZeroDivisionError
        assert equal(gradients(converted, images()), rule)

    def test_change_neither_state_nor_draws(self, rule_config: Rule) -> None:
        from sstune.schema import Redraw

        converted = resnet()
        convert(converted.eval(), rule_config("brsf", redraw=Redraw.forward), seed=0)
        before = copy.deepcopy(converted.state_dict())
        with exact_gradients(converted):
            gradients(converted, images())
        after: dict[str, Any] = converted.state_dict()
        for key, value in before.items():
            assert torch.equal(after[key], value) if isinstance(value, Tensor) else after[key] == value


def train(network: nn.Module, steps: int) -> list[Tensor]:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4, nesterov=True)
    losses = []
    for step in range(steps):
        begin_step(network)
        x = images(16, seed=step)
        labels = torch.arange(16) % 10
        loss = F.cross_entropy(network(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def test_sham_trains_resnet20_as_bp_does(rule_config: Rule) -> None:
    torch.manual_seed(0)
    plain = CifarResNet(blocks=3, channels=3, outputs=10)
    sham = copy.deepcopy(plain)
    convert(sham, rule_config("sham"), seed=0)
    torch.testing.assert_close(train(sham, 6), train(plain, 6), rtol=0, atol=1e-6)
    torch.testing.assert_close(plain_state_dict(sham), dict(plain.state_dict()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("sham", "kp", "pfa_o")])
def test_other_rules_learn_along_another_path(name: str, rule_config: Rule) -> None:
    plain, converted = resnet(), resnet()
    convert(converted, rule_config(name), seed=0, example=images())
    expected, losses = train(plain, 6), train(converted, 6)
    assert torch.equal(losses[0], expected[0])  # one forward pass, and the same weights
    assert not torch.allclose(losses[-1], expected[-1], atol=1e-4)
    again = resnet()
    convert(again, rule_config(name), seed=0, example=images())
    assert equal(train(again, 6), losses)
