from __future__ import annotations

import copy
import math
import re
from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sstune import backbones, rules
from sstune.backbones import Backbone, Network
from sstune.composition import compose
from sstune.schema import (
    AdamWConfig,
    CosineConfig,
    MultistepConfig,
    RequestError,
    RunConfig,
    ScheduleConfig,
    SgdConfig,
)
from sstune.training import build_optimizer, build_schedule, freeze
from sstune.training.optimization import average_of, frozen_modules, parameter_groups

PER_EPOCH = 10
EPOCHS = 8


def cosine(warmup: float = 0.0, final: float = 0.0) -> Callable[[int], float]:
    config = CosineConfig(name="cosine", warmup_epochs=warmup, final_factor=final)
    return build_schedule(config, EPOCHS, PER_EPOCH)


class TestSchedules:
    def test_constant(self) -> None:
        factor = build_schedule(ScheduleConfig(name="constant"), EPOCHS, PER_EPOCH)
        assert {factor(step) for step in range(EPOCHS * PER_EPOCH)} == {1.0}

    @given(st.floats(0, 1), st.integers(0, EPOCHS * PER_EPOCH))
    def test_cosine_is_half_a_cosine(self, final: float, step: int) -> None:
        expected = final + (1 - final) * 0.5 * (1 + math.cos(math.pi * step / (EPOCHS * PER_EPOCH)))
        assert cosine(final=final)(step) == pytest.approx(expected)

    @pytest.mark.parametrize("warmup", [0.0, 0.3, 1.0, 2.5])
    @pytest.mark.parametrize("final", [0.0, 0.1])
    def test_cosine_starts_at_one_and_ends_at_its_final_value(self, warmup: float, final: float) -> None:
        factor = cosine(warmup, final)
        first, last = round(warmup * PER_EPOCH), EPOCHS * PER_EPOCH
        assert factor(first) == 1.0
        assert factor((first + last) // 2) == pytest.approx((1 + final) / 2, abs=0.05)
        assert factor(last) == pytest.approx(final)
        after = [factor(step) for step in range(first, last + 1)]
        assert after == sorted(after, reverse=True)

    @pytest.mark.parametrize("kind", [ScheduleConfig, CosineConfig, MultistepConfig])
    @pytest.mark.parametrize("warmup", [0.1, 0.3, 1.0, 2.5])
    def test_warm_up_rises_in_equal_steps_from_above_zero_to_one(
        self, kind: type[ScheduleConfig], warmup: float
    ) -> None:
        config = kind(name="x", warmup_epochs=warmup)
        if isinstance(config, MultistepConfig):
            config.milestones = [5]
        steps = round(warmup * PER_EPOCH)
        factor = build_schedule(config, EPOCHS, PER_EPOCH)
        rise = [0.0, *(factor(step) for step in range(steps + 1))]
        assert rise[-1] == 1.0
        assert [b - a for a, b in pairwise(rise)] == pytest.approx([1 / (steps + 1)] * (steps + 1))

    def test_multistep_falls_at_each_milestone_and_not_before(self) -> None:
        config = MultistepConfig(name="multistep", milestones=[2, 5], gamma=0.1)
        factor = build_schedule(config, EPOCHS, PER_EPOCH)
        steps = [0, 19, 20, 49, 50, 79]
        assert [factor(step) for step in steps] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])

    def test_a_warm_up_longer_than_training_never_divides_by_zero(self) -> None:
        factor = cosine(warmup=float(EPOCHS))
        assert [factor(step) for step in (0, 79, 80)] == pytest.approx([1 / 81, 80 / 81, 1.0])


def network_of(weight: nn.Parameter) -> Network:
    module = nn.Module()
    module.weight = weight
    return Network(Backbone(module, head="", stem=""), [0.5], [0.5])


class TestOptimizers:
    def test_sgd_is_torchs_with_our_settings(self) -> None:
        config = SgdConfig(name="sgd", lr=0.3, weight_decay=0.2, momentum=0.8, nesterov=False)
        optimizer = build_optimizer(config, network_of(nn.Parameter(torch.ones(2))))
        assert isinstance(optimizer, torch.optim.SGD)
        expected = {"lr": 0.3, "weight_decay": 0.2, "momentum": 0.8, "nesterov": False}
        assert {key: optimizer.param_groups[0][key] for key in expected} == expected

    def test_adamw_is_torchs_with_our_settings(self) -> None:
        config = AdamWConfig(name="adamw", lr=0.3, weight_decay=0.2, betas=[0.5, 0.6])
        optimizer = build_optimizer(config, network_of(nn.Parameter(torch.ones(2))))
        assert isinstance(optimizer, torch.optim.AdamW)
        expected = {"lr": 0.3, "weight_decay": 0.2, "betas": (0.5, 0.6)}
        assert {key: optimizer.param_groups[0][key] for key in expected} == expected

    def test_a_step_of_sgd_by_hand(self) -> None:
        """Nesterov momentum m and weight decay d: the first step is -lr (1 + m) (g + d w)."""
        weight = nn.Parameter(torch.tensor([2.0]))
        config = SgdConfig(name="sgd", lr=0.1, weight_decay=0.5, momentum=0.9, nesterov=True)
        optimizer = build_optimizer(config, network_of(weight))
        weight.grad = torch.tensor([3.0])
        optimizer.step()
        assert weight.item() == pytest.approx(2 - 0.1 * 1.9 * (3 + 0.5 * 2))


def converted(*overrides: str) -> tuple[RunConfig, Network]:
    """A small network under a rule, as ``sstune train`` builds it."""
    torch.manual_seed(0)
    config = compose("train", [*overrides])
    network = backbones.build(config.backbone, (1, 8, 8), 10, [0.5], [0.5])
    example = torch.zeros(2, 1, 8, 8)
    rules.convert(network.backbone, config.rule, 0, network.aliases, example)
    return config, network


KP = ["rule=kp", "rule.start=random", "backbone=mlp", "backbone.hidden=[5,5]"]


class TestFreeze:
    @pytest.mark.parametrize(
        ("patterns", "expected"),
        [
            ([], ""),
            (["stem"], "conv1"),
            (["head"], "linear"),
            (["layer1", "layer2.0.*", "head"], r"layer1\..*|layer2\.0\..*|linear"),
            (["layer?.0.conv2"], r"layer.\.0\.conv2"),
            (["*bn*"], r".*bn\d"),
        ],
    )
    def test_a_pattern_stands_for_the_layers_it_names(self, patterns: list[str], expected: str) -> None:
        _, network = converted()
        freeze(network, patterns)
        frozen = {name for name, p in network.backbone.named_parameters() if not p.requires_grad}
        owners = {name.rpartition(".")[0] for name, _ in network.backbone.named_parameters()}
        assert {name.rpartition(".")[0] for name in frozen} == {
            o for o in owners if re.fullmatch(expected, o)
        }
        trained = {id(p) for group in parameter_groups(network, {}) for p in group["params"]}
        for name, parameter in network.backbone.named_parameters():
            assert (id(parameter) in trained) == (name not in frozen)

    def test_trained_feedback_rests_with_its_layer(self) -> None:
        _, network = converted(*KP)
        freeze(network, ["stem"])
        rests = {name for name, p in network.backbone.named_parameters() if not p.requires_grad}
        assert rests == {"hidden1.weight", "hidden1.bias", "hidden1.feedback.decay"}

    @pytest.mark.parametrize(
        ("patterns", "said"),
        [
            (["hed"], "optimizer.freeze: 'hed' matches no module, did you mean 'head'?"),
            (["stem", "linaer"], "optimizer.freeze: 'linaer' matches no module, did you mean 'linear'?"),
            (["*.feedback"], "optimizer.freeze: '*.feedback' matches no module, the nearest known: "),
            (["*"], "optimizer.freeze: ['*'] leaves nothing to train"),
        ],
    )
    def test_what_cannot_be_frozen_is_refused(self, patterns: list[str], said: str) -> None:
        _, network = converted("rule=usf")
        with pytest.raises(RequestError) as caught:
            freeze(network, patterns)
        assert str(caught.value).startswith(said)
        assert "\n" not in str(caught.value)

    def test_a_module_is_frozen_when_nothing_in_it_is_trained(self) -> None:
        _, network = converted()
        freeze(network, ["layer1.0", "layer2.0.bn1"])
        names = {module: name for name, module in network.backbone.named_modules()}
        frozen = {names[module] for module in frozen_modules(network)}
        inner = ["conv1", "bn1", "conv2", "bn2"]
        assert frozen == {"layer1.0", *(f"layer1.0.{name}" for name in inner), "layer2.0.bn1"}


class TestFactors:
    def test_the_last_pattern_that_names_a_layer_counts(self) -> None:
        _, network = converted()
        groups = parameter_groups(network, {"*": 0.5, "layer1": 0.1, "layer1.1": 2.0, "head": 10.0})
        factors = {id(p): group["lr_factor"] for group in groups for p in group["params"]}
        for name, parameter in network.backbone.named_parameters():
            special = {"layer1.1.": 2.0, "linear.": 10.0, "layer1.": 0.1}
            expected = next((f for prefix, f in special.items() if name.startswith(prefix)), 0.5)
            assert factors[id(parameter)] == expected, name
        assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))

    @pytest.mark.parametrize("pattern", ["stem", "hidden1", "*1", "*d*e*"])
    def test_trained_feedback_is_in_the_group_of_its_weight(self, pattern: str) -> None:
        _, network = converted(*KP)
        groups = parameter_groups(network, {pattern: 3.0})
        factors = {id(p): group["lr_factor"] for group in groups for p in group["params"]}
        named = dict(network.backbone.named_parameters())
        for layer in ("hidden1", "hidden2", "head"):
            assert factors[id(named[f"{layer}.feedback.decay"])] == factors[id(named[f"{layer}.weight"])]

    def test_feedback_is_not_named_by_a_pattern_of_its_own(self) -> None:
        """``*k`` names ``trunk``, and it would name everything in ``head.feedback``."""
        layers = OrderedDict(flatten=nn.Flatten(), trunk=nn.Linear(4, 3), head=nn.Linear(3, 2))
        network = Network(Backbone(nn.Sequential(layers), head="head", stem="trunk"), [0.5], [0.5])
        rules.convert(network.backbone, compose("train", KP[:2]).rule, 0)
        groups = {group["lr_factor"]: group["params"] for group in parameter_groups(network, {"*k": 3.0})}
        names = {id(parameter): name for name, parameter in network.backbone.named_parameters()}
        parts = ["weight", "bias", "feedback.decay"]
        for factor, layer in ((3.0, "trunk"), (1.0, "head")):
            assert {names[id(p)] for p in groups[factor]} == {f"{layer}.{part}" for part in parts}
        freeze(network, ["*k"])
        assert [p.requires_grad for p in network.backbone.head.parameters()] == [True] * 3  # type: ignore[union-attr, operator]

    def test_an_unknown_pattern_is_refused(self) -> None:
        with pytest.raises(RequestError) as caught:
            parameter_groups(converted()[1], {"haed": 2.0})
        assert str(caught.value) == "optimizer.lr_factors: 'haed' matches no module, did you mean 'head'?"


class TestFused:
    @pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
    def test_it_gives_what_torchs_own_loop_gives(self, optimizer: str) -> None:
        """With trained feedback, whose decay is float64 among float32 weights."""
        settings = [*KP, f"optimizer={optimizer}", "optimizer.weight_decay=0.1", "optimizer.lr=0.05"]
        images, labels = torch.rand(6, 1, 8, 8), torch.arange(6)
        networks = []
        for fused in ("true", "false"):
            config, network = converted(*settings, f"optimizer.fused={fused}")
            ours = build_optimizer(config.optimizer, network)
            assert ours.defaults["fused"] == (fused == "true")
            for _ in range(3):
                ours.zero_grad()
                F.cross_entropy(network(images), labels).backward()
                ours.step()
            networks.append(network)
        start = dict(converted(*settings)[1].named_parameters())
        for (name, one), other in zip(networks[0].named_parameters(), networks[1].parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
            assert not torch.equal(one, start[name])

    def test_by_default_only_on_cuda(self) -> None:
        config, network = converted(*KP)
        assert build_optimizer(config.optimizer, network).defaults["fused"] is False


class TestAverage:
    def test_none_without_a_decay(self) -> None:
        assert average_of(converted()[1], None) is None

    @given(st.floats(0.01, 0.99), st.integers(1, 5))
    def test_a_moving_average_that_begins_with_the_first_weights(self, decay: float, steps: int) -> None:
        network = network_of(nn.Parameter(torch.zeros(3, dtype=torch.float64)))
        average = average_of(network, decay)
        assert average is not None
        noise = torch.Generator().manual_seed(steps)
        values = torch.randn(steps, 3, generator=noise, dtype=torch.float64)
        expected = values[0]
        for number, value in enumerate(values):
            with torch.no_grad():
                network.backbone.weight.copy_(value)  # type: ignore[operator, union-attr]
            average.update_parameters(network)
            expected = decay * expected + (1 - decay) * value if number else value
        torch.testing.assert_close(average.module.backbone.weight.detach(), expected)  # type: ignore[union-attr]

    def test_it_is_torchs_own_bit_for_bit_and_goes_on_from_its_state(self) -> None:
        network = converted()[1]
        reference = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        average = average_of(network, 0.9)
        assert average is not None
        before: dict[str, torch.Tensor] = {}
        for step in range(4):
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.add_(torch.randn(parameter.shape))
            reference.update_parameters(network)
            if step == 2:
                average = average_of(network, 0.9)
                assert average is not None
                average.load_state_dict(before)
            average.update_parameters(network)
            before = copy.deepcopy(average.state_dict())
            assert before.keys() == reference.state_dict().keys()
            for key, value in reference.state_dict().items():
                assert torch.equal(before[key], value) if isinstance(value, torch.Tensor) else True
