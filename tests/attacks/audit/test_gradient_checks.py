"""D1, D2, D10: the gap between two gradients, the angle between them, and gradients that vanish."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from victims import victim_of

from sstune.attacks.audit import CheckResult, Evidence
from sstune.attacks.audit.gradients import d1, d2, d10
from sstune.backbones import Network
from sstune.datasets import Split
from sstune.schema.audit import Status

Audited = Callable[..., Evidence]
Converted = Callable[[str], Network]


def input_gradients(network: nn.Module, split: Split) -> Tensor:
    """In float64, by plain autograd."""
    images = (split.images / 255).double().requires_grad_()
    loss = F.cross_entropy(copy.deepcopy(network).double()(images), split.targets, reduction="sum")
    return torch.autograd.grad(loss, images)[0].flatten(1)


class TestD1:
    @pytest.mark.parametrize(
        ("own", "exact", "n", "n_eps", "status"),
        [
            (100, 90, 200, 4, "masked"),
            (96, 90, 200, 4, "warn"),  # 6 of 6 is p = 0.031: too much for the best of four eps
            (96, 90, 200, 1, "masked"),
            (97, 90, 200, 4, "warn"),  # 0.0156
            (98, 90, 200, 4, "masked"),  # 0.0078 < 0.0125
            (420, 400, 1000, 4, "ok"),  # 2 points
            (421, 400, 1000, 4, "masked"),
            (90, 100, 200, 4, "ok"),
        ],
    )
    def test_needs_more_than_two_points_and_more_than_chance(
        self, planned: Audited, own: int, exact: int, n: int, n_eps: int, status: str
    ) -> None:
        """Equal at all probed eps but the last."""
        probed = [f"{2**number}/255" for number in range(1, n_eps + 1)]
        left = {f"pgd {source} {each}": own for source in ("rule", "exact") for each in probed}
        left |= {f"pgd exact {probed[-1]}": exact, f"pgd rule {2 * 2**n_eps}/255": 0}
        check = d1(planned(left, n, probed[:1], clean=2 * own))
        assert check.status == status
        assert check.figure == pytest.approx(max(0.0, 100 * (own - exact) / n))

    def test_finds_5_points_in_200_samples_but_not_in_60(self, planned: Audited) -> None:
        def of(n: int) -> CheckResult:
            left = {"pgd rule 2/255": n // 2, "pgd exact 2/255": n // 2, "pgd rule 4/255": 0}
            return d1(planned(left, n, ["2/255"]))

        assert (of(200).finds or 0) <= 5 < (of(60).finds or 0)
        assert "attack.n=" in of(60).text

    def test_equals_the_gap_of_the_outcomes(self, converted: Converted, audited: Audited) -> None:
        evidence = audited(converted("frsf"))
        check = d1(evidence)
        right = {key: cell.outcome.robust for key, cell in evidence.cells.items()}
        gaps = {eps: int(right[f"pgd rule {eps}"].sum()) - int(right[f"pgd exact {eps}"].sum())
                for eps in evidence.probed_eps}  # fmt: skip
        assert check.figure == pytest.approx(100 * max(gaps.values()) / 120)
        assert check.text.startswith(f"at {max(gaps, key=lambda eps: gaps[eps])} ")
        assert check.status is Status.masked

    def test_is_no_question_without_feedback(self, network: Network, audited: Audited) -> None:
        evidence = audited(network)
        assert d1(evidence).status is Status.report
        assert not evidence.cells


class TestD2:
    @pytest.mark.parametrize(("rule", "status"), [("usf", "report"), ("fa", "warn"), ("sham", "report")])
    def test_equals_plain_autograd_in_float64(
        self, rule: str, status: str, converted: Converted, trained: Network, audited: Audited,
        test_split: Split,
    ) -> None:  # fmt: skip
        network = converted(rule)
        check = d2(audited(network))
        own, exact = input_gradients(network, test_split), input_gradients(trained, test_split)
        cosines = (own * exact).sum(1) / (own.norm(dim=1) * exact.norm(dim=1))
        assert check.figure == pytest.approx(float(cosines.mean()), abs=1e-4)
        assert check.status == status
        assert check.n == 120
        agreeing = float((own.sign() == exact.sign()).double().mean())
        assert f"{agreeing:.0%}" in check.text

    def test_gradients_too_small_to_be_squared_have_an_angle(
        self, converted: Converted, audited: Audited
    ) -> None:
        network = converted("sham")
        network.backbone.register_full_backward_pre_hook(lambda module, grads: (1e-30 * grads[0],))
        assert d2(audited(network)).figure == pytest.approx(1)


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: Tensor) -> Tensor:
        return self.factor * logits


class TestD10:
    def test_counts_the_samples_without_a_gradient(
        self, network: Network, audited: Audited, test_split: Split
    ) -> None:
        steep = nn.Sequential(network, Times(20)).eval()
        images = (test_split.images / 255).requires_grad_()
        losses = F.cross_entropy(steep(images), test_split.targets, reduction="none")
        gradients = torch.autograd.grad(losses.sum(), images)[0].flatten(1)
        none = 100 * float((gradients == 0).all(1).double().mean())
        saturated = 100 * float((losses == 0).double().mean())
        check = d10(audited(steep))
        assert 0 < none < saturated < 100
        assert (
            f"no gradient at {none:.1f} % of the samples, softmax saturated at {saturated:.1f} %"
            in check.text
        )
        assert check.status is Status.warn
        assert check.figure is not None
        assert check.figure >= none

    @pytest.mark.parametrize(("margin", "status"), [(59, "ok"), (55, "ok"), (54, "warn")])
    def test_a_saturated_softmax_matters_if_the_margin_breaks_more(
        self, margin: int, status: str, audited: Audited, planned: Audited, network: Network
    ) -> None:
        """More than 1 point and than chance: of 120 samples that is six."""
        evidence = audited(nn.Sequential(network, Times(3)).eval(), eps=["16/255"])
        left = {"pgd rule 2/255": 60, "pgd loss=margin rule 2/255": margin}
        evidence.run = planned(left, 120).run
        everything = torch.ones(120, dtype=torch.bool)
        evidence.victim = victim_of(evidence.victim.network, evidence.victim.split, clean=everything)
        check = d10(evidence)
        assert "no gradient at 0.0 %" in check.text
        assert "saturated at 0.0 %" not in check.text
        assert check.status == status
        assert check.figure == pytest.approx(100 * (60 - margin) / 120)

    def test_finds_nothing_in_a_healthy_network(self, network: Network, audited: Audited) -> None:
        evidence = audited(network)
        check = d10(evidence)
        assert (check.status, check.figure) == (Status.ok, 0)
        assert not evidence.cells
