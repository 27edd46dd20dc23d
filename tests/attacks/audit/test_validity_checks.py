"""D0, D11, D12, and the faults of scripts/faults.py: each is found by the check that is meant for it."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from victims import victim_of

from sstune.attacks.audit import Evidence
from sstune.attacks.audit.gradients import d10
from sstune.attacks.audit.validity import d0, d11, d12
from sstune.backbones import Network
from sstune.rules import FEEDBACKS, Feedback, convert
from sstune.rules.feedback import Pathway, weight_of
from sstune.schema import BrsfConfig, Draws
from sstune.schema.audit import Status

Audited = Callable[..., Evidence]
faults: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[3] / "scripts" / "faults.py"))


class TestPlantedFaults:
    def test_the_network_without_one_has_none(self, network: Network, audited: Audited) -> None:
        evidence = audited(network)
        assert [check(evidence).status for check in (d0, d10, d11, d12)] == [Status.ok] * 4

    @pytest.mark.parametrize("fault", ["FlatReLU", "Quantise"])
    def test_a_flat_derivative_is_no_gradient(self, fault: str, network: Network, audited: Audited) -> None:
        evidence = audited(nn.Sequential(faults[fault](), network).eval())
        check = d10(evidence)
        assert check.status is Status.warn
        assert "no gradient at 100.0 %" in check.text
        assert [check(evidence).status for check in (d0, d11)] == [Status.ok] * 2

    def test_logits_times_10000_saturate_the_softmax(self, network: Network, audited: Audited) -> None:
        evidence = audited(nn.Sequential(network, faults["Times10000"]()).eval())
        check = d10(evidence)
        assert check.status is Status.warn
        assert check.figure is not None
        assert check.figure > 90
        assert [check(evidence).status for check in (d0, d11)] == [Status.ok] * 2

    def test_random_resizing_is_random(self, network: Network, audited: Audited) -> None:
        evidence = audited(nn.Sequential(faults["RandomResize"](), network).eval())
        check = d11(evidence)
        assert check.status is Status.error
        assert check.text.startswith("outputs and input gradients differ")

    def test_train_mode_is_an_error(self, network: Network, audited: Audited) -> None:
        evidence = audited(network)
        network.train()
        check = d0(evidence)
        assert check.status is Status.error
        assert "train mode" in check.text
        assert network.training  # it is looked at, not changed
        assert d11(evidence).status is Status.ok  # attacks are made in eval mode all the same


class Besides(nn.Module):
    """A network with something done besides."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("passes", torch.zeros(()), persistent=False)


class SubtractsTheBatchMean(Besides):
    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits - logits.mean(0)


class Counts(Besides):
    def forward(self, images: Tensor) -> Tensor:
        self.passes += 1
        return self.network(images)


class SometimesNan(Besides):
    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits.index_fill(0, torch.tensor([5]), torch.nan) if len(images) > 5 else logits


class NoiseOfTheBatch(Besides):
    """The same in every pass, but another for each place in the batch."""

    def forward(self, images: Tensor) -> Tensor:
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
        return self.network(images + 0.1 * noise)


class Drops(Besides):
    """Dropout that is always on."""

    def forward(self, images: Tensor) -> Tensor:
        return self.network(nn.functional.dropout(images, 0.1, training=True))


class TestD0:
    @pytest.mark.parametrize(
        ("fault", "said"),
        [
            (SubtractsTheBatchMean, "depend on the other samples"),
            (NoiseOfTheBatch, "or on its place in it"),
            (Counts, "changes passes"),
            (SometimesNan, "not finite"),
        ],
    )
    def test_says_what_is_wrong(
        self, fault: type[Besides], said: str, network: Network, audited: Audited
    ) -> None:
        evidence = audited(network)
        evidence.victim = replace(evidence.victim, network=fault(network).eval())
        check = d0(evidence)
        assert check.status is Status.error
        assert said in check.text

    def test_batch_statistics_in_eval_mode_are_found(self, network: Network, audited: Audited) -> None:
        norm = network.backbone.get_submodule("1")
        assert isinstance(norm, nn.BatchNorm2d)
        norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
        assert "depend on the other samples" in d0(audited(network)).text

    def test_a_judgement_that_eps_0_changes_is_found(self, network: Network, audited: Audited) -> None:
        evidence = audited(network)
        wrong = (~evidence.victim.clean).nonzero().flatten()[:1]
        clean = evidence.victim.clean.index_fill(0, wrong, True)
        evidence.victim = victim_of(network, evidence.victim.split, clean=clean)
        check = d0(evidence)
        assert check.status is Status.error
        assert "eps = 0 changes the judgement of 1 of 120" in check.text

    def test_of_too_few_right_samples_nothing_can_be_said(
        self, network: Network, audited: Audited, test_split: Any
    ) -> None:
        for n in (1, 23):
            check = d0(audited(network, None, test_split.take(torch.arange(n))))
            assert check.status is Status.error
            assert "too few" in check.text
        assert d0(audited(network, None, test_split.take(torch.arange(26)))).status is Status.ok

    def test_leaves_modes_and_buffers_alone(self, network: Network, audited: Audited) -> None:
        network.get_submodule("backbone").get_submodule("6").train()
        before = {key: value.clone() for key, value in network.state_dict().items()}
        modes = [module.training for module in network.modules()]
        assert d0(audited(network)).status is Status.error
        assert [module.training for module in network.modules()] == modes
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


class Thinned(Feedback):
    """V is W without a random half of its entries."""

    def __init__(self, module: nn.Module, rule: BrsfConfig, seed: int, layer: str) -> None:
        super().__init__(module, rule, seed, layer)
        self.shape = weight_of(module).shape
        self.redraw(0)

    def redraw(self, key: int) -> None:
        generator = torch.Generator().manual_seed(key)
        self.kept = torch.rand(self.shape, generator=generator) < 0.5

    def forward(self, weight: Tensor) -> Pathway:
        return Pathway(torch.mul, (self.kept,))


class TestD11:
    @pytest.mark.parametrize(
        ("draws", "eot", "status"),
        [
            (Draws.frozen, 1, "ok"),
            (Draws.forward, 1, "warn"),
            (Draws.step, 1, "warn"),
            (Draws.forward, 3, "report"),
        ],
    )
    def test_brsf_has_random_gradients_if_it_is_drawn_anew(
        self, draws: Draws, eot: int, status: str, converted: Callable[[str], Network], audited: Audited
    ) -> None:
        check = d11(audited(converted("brsf"), own={"draws": draws, "eot": eot}))
        assert check.status == status
        if status != "ok":
            assert check.text.startswith("input gradients differ")

    def test_a_random_rule_of_a_third_party_is_seen(
        self, network: Network, audited: Audited, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(FEEDBACKS, "_entries", {**FEEDBACKS._entries, "thinned": Thinned})
        convert(network.backbone, BrsfConfig("thinned"), 0, network.aliases)
        assert d11(audited(network)).status == "ok"
        found = d11(audited(network, own={"draws": Draws.forward}))
        assert (found.status, found.text) == (
            "warn",
            "input gradients differ from pass to pass: use attack.eot",
        )

    def test_a_random_input_is_random_in_both(self, network: Network, audited: Audited) -> None:
        evidence = audited(Drops(network).eval())
        check = d11(evidence)
        assert (check.status, check.figure) == (Status.error, 2)
        assert d0(evidence).status is Status.ok  # random is not invalid

    @pytest.mark.parametrize(("noise", "status"), [(1e-6, "ok"), (1e-2, "error")])
    def test_rounding_is_not_random(
        self, noise: float, status: str, network: Network, audited: Audited
    ) -> None:
        network.register_forward_hook(
            lambda module, inputs, logits: logits * (1 + noise * torch.randn_like(logits))
        )
        assert d11(audited(network)).status == status


@pytest.mark.parametrize(
    ("last", "status"),
    [(nn.Softmax(1), "warn"), (nn.Identity(), "ok"), (nn.Sigmoid(), "ok"), (nn.LogSoftmax(1), "ok")],
)
def test_d12_knows_probabilities(last: nn.Module, status: str, network: Network, audited: Audited) -> None:
    assert d12(audited(nn.Sequential(network, last).eval())).status == status
