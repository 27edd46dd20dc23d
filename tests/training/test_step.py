"""One optimiser step against plain loops in float64: whole batches, and parts of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sstune import backbones, rules, tasks
from sstune.composition import compose
from sstune.datasets import Batch
from sstune.schema import RequestError, RunConfig
from sstune.training import Learner, build_optimizer
from sstune.training.step import Step

CPU = torch.device("cpu")
SHAPE = (1, 3, 3)
BASE = ["backbone=mlp", "backbone.hidden=[7]", "dataset.mean=[0.4]", "dataset.std=[0.3]", "optimizer.lr=0.3"]


def network_for(config: RunConfig) -> backbones.Network:
    torch.manual_seed(0)
    network = backbones.build(config.backbone, SHAPE, 4, config.dataset.mean, config.dataset.std)
    rules.convert(network.backbone, config.rule, 0, example=torch.zeros(2, *SHAPE))
    return network.double()


def step_of(*overrides: str, batch_size: int) -> tuple[Step, backbones.Network]:
    config = compose("train", [*BASE, f"batch_size={batch_size}", *overrides])
    network = network_for(config)
    optimizer = build_optimizer(config.optimizer, network)
    task = tasks.build(config.task, 4)
    return Step(Learner(config, network, task, optimizer, CPU), batch_size), network


def batch_of(images: Tensor, labels: Tensor) -> Batch:
    return Batch(images, labels, torch.arange(len(labels)))


def batch(n: int, seed: int) -> tuple[Tensor, Tensor]:
    noise = torch.Generator().manual_seed(seed)
    images = torch.rand(n, *SHAPE, generator=noise, dtype=torch.float64)
    return images, torch.randint(4, (n,), generator=noise)


def plain_loop(
    *overrides: str, batches: list[tuple[Tensor, Tensor]], clip: float | None = None
) -> tuple[backbones.Network, list[tuple[float, int]]]:
    """A tutorial's loop over whole batches; the network, and each batch's loss and right answers."""
    network = network_for(compose("train", [*BASE, *overrides]))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.3, momentum=0.9, weight_decay=5e-4, nesterov=True)
    seen = []
    for images, labels in batches:
        rules.begin_step(network)
        outputs = network(images)
        loss = F.cross_entropy(outputs, labels)
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step()
        seen.append((float(loss.detach()), int((outputs.argmax(1) == labels).sum())))
    return network, seen


def assert_equal_weights(one: nn.Module, other: nn.Module) -> None:
    for (name, ours), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        # clip_grad_norm_ adds 1e-6 to the norm
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-10, msg=lambda text, name=name: name)


class TestAccumulation:
    @settings(max_examples=60, deadline=None)
    @given(st.data(), st.integers(1, 12), st.sampled_from(["bp", "usf", "brsf", "dfa"]))
    def test_parts_of_a_batch_give_what_the_whole_batch_gives(
        self, data: st.DataObject, n: int, rule: str
    ) -> None:
        k = data.draw(st.integers(1, max(1, n // 2)), label="accumulate")
        last = data.draw(st.integers(1, n), label="images of the last batch")
        lines = [f"rule={rule}", "optimizer.weight_decay=5e-4"]
        step, network = step_of(*lines, f"accumulate={k}", batch_size=n)
        batches = [batch(n, 0), batch(n, 1), batch(last, 2)]
        seen = [step(batch_of(images, labels), len(labels)) for images, labels in batches]
        expected, theirs = plain_loop(*lines, batches=batches)
        assert_equal_weights(network, expected)
        for (loss, right), (their_loss, their_right) in zip(seen, theirs, strict=True):
            assert float(loss) == pytest.approx(their_loss, rel=1e-9)
            assert int(right) == their_right

    def test_a_batch_is_computed_in_so_many_parts(self) -> None:
        step, network = step_of("accumulate=3", batch_size=8)
        sizes: list[int] = []
        network.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
        for n in (8, 4):
            step(batch_of(*batch(n, 0)), n)
        assert sizes == [3, 3, 2, 2, 2]

    @pytest.mark.parametrize(("redraw", "draws"), [("step", 1 + 2), ("forward", 1 + 2 * 3)])
    def test_brsf_draws_once_per_step_unless_told_to_draw_in_every_pass(
        self, redraw: str, draws: int
    ) -> None:
        step, network = step_of("rule=brsf", f"rule.redraw={redraw}", "accumulate=3", batch_size=6)
        for seed in range(2):
            step(batch_of(*batch(6, seed)), 6)
        layers = rules.feedback_layers(network).values()
        assert {layer.feedback.draws for layer in layers} == {draws}  # type: ignore[attr-defined]

    def test_the_whole_batchs_gradient_is_clipped(self) -> None:
        lines = ["rule=usf", "optimizer.weight_decay=5e-4"]
        step, network = step_of(*lines, "accumulate=3", "clip_norm=0.05", batch_size=8)
        batches = [batch(8, seed) for seed in range(3)]
        for images, labels in batches:
            step(batch_of(images, labels), len(labels))
        expected, _ = plain_loop(*lines, batches=batches, clip=0.05)
        assert_equal_weights(network, expected)


class TestCompilers:
    @pytest.mark.parametrize(
        ("programs", "named", "found"),
        [
            ([], None, False),
            (["g++"], None, True),
            (["clang++"], None, False),  # torch would not look for it
            (["clang++"], "clang++", True),
            (["g++"], "mine++ -m64", False),
            (["mine++"], "mine++ -m64", True),
        ],
    )
    @pytest.mark.skipif("sys.platform == 'darwin'", reason="torch looks for clang++ there")
    def test_compile_needs_the_one_that_torch_looks_for(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        programs: list[str],
        named: str | None,
        found: bool,
    ) -> None:
        for program in programs:
            (tmp_path / program).symlink_to(str(shutil.which("true")))
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CXX", raising=False)
        if named is not None:
            monkeypatch.setenv("CXX", named)
        if found:
            step_of("compile=default", batch_size=4)
            return
        with pytest.raises(RequestError) as caught:
            step_of("compile=default", batch_size=4)
        said = f"compile: needs a C++ compiler for the CPU; there is no {(named or 'g++').split()[0]} ($CXX)"
        assert str(caught.value) == said
