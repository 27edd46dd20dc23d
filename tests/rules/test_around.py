"""What PyTorch offers around a network: compilation, checkpointing, functional calls; and no hidden cost."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import small_network
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from variants import EVERY

from sstune.backbones import build
from sstune.rules import begin_step, convert, plain_state_dict
from sstune.schema import ConvNetConfig, RuleConfig, Scale, VitConfig

Rule = Callable[..., RuleConfig]

EACH_RULE = pytest.mark.parametrize("name", EVERY)


def images(n: int = 4, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def converted(rule: RuleConfig, network: nn.Module | None = None) -> nn.Module:
    network = network or small_network()
    convert(network, rule, seed=0, example=images(2))
    return network


def gradients(
    call: Callable[[Tensor], Tensor], network: nn.Module, x: Tensor, autocast: bool = False
) -> dict[str, Tensor]:
    network.zero_grad()
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        outputs = call(x)
    F.cross_entropy(outputs.float(), torch.arange(len(x)) % 5).backward()
    named = {name: parameter.grad for name, parameter in network.named_parameters()}
    return {"outputs": outputs.detach(), "x": x.grad, **named}


def update(network: nn.Module) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.sub_(0.01 * parameter.grad)


@pytest.mark.parametrize(
    ("autocast", "scale"), [(False, Scale.weight_rms), (True, Scale.xavier)], ids=["float32", "bf16"]
)
@EACH_RULE
def test_compiled_as_one_graph_it_equals_eager_and_is_compiled_once(
    name: str, autocast: bool, scale: Scale, rule_config: Rule
) -> None:
    network = converted(rule_config(name, scale))
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    tolerance = 2e-2 if autocast else 1e-5
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    for step in range(4):  # signs, scales, draws and trained feedback change in between
        begin_step(network)
        eager = gradients(network, network, images(seed=step), autocast)
        assert eager["outputs"].dtype == (torch.bfloat16 if autocast else torch.float32)
        with torch._dynamo.config.patch(error_on_recompile=step > 0):
            found = gradients(compiled, network, images(seed=step), autocast)
        assert found.keys() == eager.keys()
        for key, expected in eager.items():
            scale = float(expected.abs().max())
            np.testing.assert_allclose(
                found[key].float(), expected.float(), rtol=0, atol=tolerance * scale, err_msg=key
            )
        update(network)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


class Checkpointed(nn.Module):
    """The small network, with most of its activations computed once more in the backward pass, or not."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = small_network()
        self.again = True

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[:1](x)
        middle = self.layers[1:5]
        x = checkpoint(middle, x, use_reentrant=False) if self.again else middle(x)
        return self.layers[5:](x)


@EACH_RULE
def test_checkpointed_activations_change_no_gradient(name: str, rule_config: Rule) -> None:
    network = converted(rule_config(name), Checkpointed())
    for step in range(2):
        begin_step(network)
        found = gradients(network, network, images(seed=step))
        network.again = False
        expected = gradients(network, network, images(seed=step))
        network.again = True
        for key, value in expected.items():
            assert torch.equal(found[key], value), key
        update(network)


@EACH_RULE
def test_functional_call_uses_the_weights_that_it_is_given(name: str, rule_config: Rule) -> None:
    network = converted(rule_config(name))
    given = {
        key: (value.detach() * -0.5 + 0.01).requires_grad_()
        for key, value in network.named_parameters()
        if ".feedback." not in key
    }
    with_them = copy.deepcopy(network)
    with_them.load_state_dict(given, strict=False)
    expected = gradients(with_them, with_them, images())
    network.zero_grad()
    x = images().requires_grad_()
    F.cross_entropy(functional_call(network, given, (x,)), torch.arange(4)).backward()
    torch.testing.assert_close(x.grad, expected["x"], rtol=1e-5, atol=1e-8)
    for key, value in given.items():
        torch.testing.assert_close(value.grad, expected[key], rtol=1e-5, atol=1e-7)


class NoWait(TorchDispatchMode):
    """Fails where a value is asked for, which would stop the CPU until an accelerator has computed it."""

    FORBIDDEN = (
        "_local_scalar_dense",
        "nonzero",
        "is_nonzero",
        "equal",
        "allclose",
        "masked_select",
        "unique",
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1] or ()
        )
        assert not by_mask, f"waits in {func}"
        assert name not in self.FORBIDDEN, f"waits in {func}"
        return func(*args, **(kwargs or {}))


class TestNothingWaits:
    def test_the_check_sees_an_item(self) -> None:
        with NoWait(), pytest.raises(AssertionError, match="waits"):
            float(torch.ones(()))
        with NoWait(), pytest.raises(AssertionError, match="waits"):
            torch.ones(3)[torch.ones(3) > 0]

    @pytest.mark.parametrize("scale", list(Scale))
    @EACH_RULE
    def test_in_a_training_step(self, name: str, scale: Scale, rule_config: Rule) -> None:
        network = converted(rule_config(name, scale))
        x, labels = images().requires_grad_(), torch.arange(4)
        with NoWait():
            begin_step(network)
            F.cross_entropy(network(x), labels).backward()
        gradients = [x.grad, *(parameter.grad for parameter in network.parameters())]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


@EACH_RULE
def test_no_random_numbers_but_its_own(name: str, rule_config: Rule) -> None:
    network = small_network()
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    converted(rule_config(name), network)
    for _ in range(2):
        begin_step(network)
        gradients(network, network, images())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]


@pytest.mark.parametrize(
    "backbone", [ConvNetConfig(name="resnet18"), VitConfig(name="vit_tiny")], ids=lambda config: config.name
)
def test_sham_trains_as_backpropagation_does(backbone: Any, rule_config: Rule) -> None:
    torch.manual_seed(0)
    plain = build(backbone, (3, 16, 16), 10, [0.5] * 3, [0.25] * 3)
    sham = copy.deepcopy(plain)
    report = convert(sham, rule_config("sham"), seed=0)
    assert len(report.feedback) > 20
    x = torch.rand(20, 4, 3, 16, 16)
    losses = []
    for network in (plain, sham):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
        for batch in x:
            loss = F.cross_entropy(network(batch), torch.arange(4))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert abs(losses[19] - losses[0]) > 0.1
    np.testing.assert_allclose(losses[20:], losses[:20], rtol=0, atol=1e-6)
    torch.testing.assert_close(plain_state_dict(sham), dict(plain.state_dict()), rtol=0, atol=1e-6)
