from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sstune.backbones import Backbone, Network
from sstune.schema import AdamWConfig, CosineConfig, MultistepConfig, ScheduleConfig, SgdConfig
from sstune.training import build_optimizer, build_schedule

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
