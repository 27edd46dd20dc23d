"""The audit of task=hashing: values in place of counts, the checks that apply, and planted faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sstune import tasks
from sstune.attacks import Attack, GradientSource, Outcome, Victim, run_attack
from sstune.attacks.audit import CheckResult, Evidence, audit, verdict
from sstune.attacks.audit.comparison import compare, most_significant, surely_above
from sstune.attacks.audit.gradients import d1, d2, d10
from sstune.attacks.audit.strength import d5, d6, d9, d15
from sstune.attacks.audit.validity import d0, d11
from sstune.commands import execute
from sstune.commands.data import load
from sstune.commands.lineage import derive_run
from sstune.commands.victim import load_victim, surrogate
from sstune.composition import Request, compose, request
from sstune.quantities import parse_eps
from sstune.rules import feedback_layers
from sstune.schema import AuditConfig, Gradient, HashingConfig
from sstune.schema.audit import CHECKS, Status, Verdict
from sstune.statistics import PairedValues, mean_interval, permutation_test
from sstune.tasks.hashing import Hashing

CPU = torch.device("cpu")
SMALL = [
    "dataset=digits", "task=hashing", "task.bits=16", "split.n_query=24", "split.n_train=80",
    "split.n_val=10", "backbone=mlp", "epochs=3", "threads=1", "device=cpu",
]  # fmt: skip
NOT_APPLICABLE = ["D7", "D12", "D13", "D14"]
EPS = ["0.05", "0.1"]

Audited = Callable[..., Evidence]


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Runs of two seeds."""
    out = f"out={tmp_path_factory.mktemp('retrieval')}"
    one, two = (execute(request("train", [*SMALL, out, f"seed={seed}"])).directory for seed in (0, 1))
    return one, two


@pytest.fixture
def retrieval(networks: tuple[Path, Path], tmp_path: Path) -> Audited:
    """``retrieval(rule="frsf", fault=module, transfer=True, n=40)``: real attacks on queries of the digits;
    ``fault`` is put before the network."""

    def run(key: str, victim: Victim, attack: Attack, source: GradientSource, eps: str) -> Outcome:
        return run_attack(victim, attack, source, parse_eps(eps), 128)

    def make(
        rule: str = "bp",
        fault: nn.Module | None = None,
        transfer: bool = False,
        n: int = 60,
    ) -> Evidence:
        line = ["attack=audit", f"init_from={networks[0]}", f"rule={rule}", f"attack.n={n}", "device=cpu",
                f"out={tmp_path}"]  # fmt: skip
        made, source = derive_run(Request.of(compose("attack", line), line), None)
        made.directory.mkdir(parents=True, exist_ok=True)
        data = load(made, source)
        victim = load_victim(made.config, source, data, CPU)
        if fault is not None:
            faulty = nn.Sequential(fault, victim.network).eval()
            victim = Victim.of(faulty, victim.task, victim.split, victim.samples, CPU, victim.reference)
        network = victim.network
        other = surrogate(str(networks[1]), made.config, data, victim) if transfer else None
        return Evidence(
            victim=victim,
            white_box=GradientSource(Gradient.rule, network),
            exact=GradientSource(Gradient.exact, network),
            surrogate=other,
            has_feedback=bool(feedback_layers(network)),
            n_classes=10,
            eps=EPS,
            seed=0,
            config=AuditConfig(black_box_n=n),
            run=run,
        )

    return make


class Judged:
    """All checks and the verdict."""

    def __init__(self, evidence: Evidence, *skipped: str) -> None:
        self.found = {check.id: check for check in audit(evidence, skipped)}
        results = list(self.found.values())
        self.verdict, self.because = verdict(results, skipped, evidence.profile.not_applicable)

    def status(self, name: str) -> Status:
        return self.found[name].status


class TestOfNetworks:
    def test_bp_is_not_masked(self, retrieval: Audited) -> None:
        bp = Judged(retrieval(n=240))
        assert (bp.verdict, bp.because) == (Verdict.not_masked, ["D16", "D4", "D5", "D8"])
        assert list(bp.found) == list(CHECKS)
        assert all(check.title and check.text for check in bp.found.values())
        assert bp.found["D6"].title == "mAP@all falls with eps"
        assert Status.warn not in {check.status for check in bp.found.values()}
        assert (bp.found["D8"].finds or 0) <= 5

    def test_frsf_is_masked_by_the_gap_of_the_outcomes(self, retrieval: Audited) -> None:
        evidence = retrieval("frsf", n=240)
        check = d1(evidence)
        assert check.status is Status.masked
        gaps = {
            eps: 100 * float((precision(evidence, f"mainstay rule {eps}")
                              - precision(evidence, f"mainstay exact {eps}")).mean())
            for eps in evidence.probed_eps
        }  # fmt: skip
        assert check.figure == pytest.approx(max(gaps.values()), abs=1e-4)
        assert check.figure is not None
        assert check.figure > 5

    def test_sham_is_not(self, retrieval: Audited) -> None:
        evidence = retrieval("sham", n=40)
        assert (d1(evidence).status, d1(evidence).figure) == (Status.ok, 0)
        assert d2(evidence).figure == pytest.approx(1)

    def test_what_does_not_apply_is_listed_with_the_reason(self, retrieval: Audited) -> None:
        others = [name for name in CHECKS if name not in NOT_APPLICABLE]
        found = {check.id: check for check in audit(retrieval(n=20), [*others, "D14"])}
        assert {check.status for check in found.values()} == {Status.not_run}
        for name in NOT_APPLICABLE[:-1]:
            assert found[name].text == "not applicable to task=hashing"
        assert found["D14"].text == "skipped by audit.skip"


class Detached(nn.Module):
    """No gradient."""

    def forward(self, images: Tensor) -> Tensor:
        return images.detach()


class Steered(torch.autograd.Function):
    """The identity, whose gradient is multiplied."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return images.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (factor,) = ctx.saved_tensors
        return gradient * factor, None


class Flipped(nn.Module):
    """A random half of the gradient's pixels has the wrong sign: the same half in every pass, or another."""

    def __init__(self, anew: bool) -> None:
        super().__init__()
        self.anew = anew
        self.signs = self.draw(torch.Generator().manual_seed(0))

    def draw(self, generator: torch.Generator | None = None) -> Tensor:
        return (torch.rand(1, 1, 8, 8, generator=generator) < 0.5).float() * 2 - 1

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = Steered.apply(images, self.draw() if self.anew else self.signs)
        return found


class Quantised(nn.Module):
    """The levels of grey of the digits, by a step function, which has no derivative."""

    def forward(self, images: Tensor) -> Tensor:
        return (images * 16).round() / 16


class TestPlantedFaults:
    @pytest.mark.parametrize("fault", [Detached(), Flipped(anew=True), Flipped(anew=False), Quantised()])
    def test_are_masked_without_another_network(self, fault: nn.Module, retrieval: Audited) -> None:
        judged = Judged(retrieval(fault=fault), "D3", "D4", "D6", "D9")
        assert judged.status("D0") is Status.ok
        assert judged.verdict is Verdict.masked
        assert "D16" in judged.because

    def test_no_gradient_is_seen_by_d10(self, retrieval: Audited) -> None:
        check = d10(retrieval(fault=Detached(), n=40))
        assert (check.status, "no gradient at 100.0 %" in check.text) == (Status.warn, True)

    def test_a_random_gradient_is_seen_by_d11(self, retrieval: Audited) -> None:
        assert d11(retrieval(fault=Flipped(anew=True), n=40)).text.startswith("input gradients differ")

    def test_a_wrong_gradient_leaves_more_than_chance_at_a_huge_eps(self, retrieval: Audited) -> None:
        """No attack by labels can settle what that means."""
        check = d5(retrieval(fault=Flipped(anew=False)))
        assert check.status in (Status.warn, Status.masked)
        assert check.text.endswith("; no black box tells whether the gradient is to blame")


def precision(evidence: Evidence, key: str) -> Tensor:
    """AP of each attacked query, scored anew from the predictions."""
    cell, victim = evidence.cells[key], evidence.victim
    targets = victim.split.targets[cell.subset.index]
    each = victim.task.score(cell.outcome.predictions, targets, victim.reference).each
    assert each is not None
    return each.double()


class TestD15:
    def test_is_the_least_of_all_outcomes(self, retrieval: Audited) -> None:
        evidence = retrieval("frsf", transfer=True, n=40)
        evidence.config = replace(evidence.config, black_box_n=20)
        list(audit(evidence, ["D2", "D11"]))
        check = d15(evidence)
        whole = evidence.victim.score.each
        assert whole is not None
        for eps in evidence.eps:
            expected = whole.double().clone()
            for key, cell in evidence.cells.items():
                if parse_eps(cell.eps) <= parse_eps(eps):
                    for query, value in zip(cell.subset.index, precision(evidence, key), strict=True):
                        expected[query] = min(expected[query], value)
            found = evidence.worst_case(eps)
            assert torch.allclose(found, expected, rtol=0, atol=1e-6)
            assert f"{100 * float(expected.mean()):.1f} % at {eps}" in check.text
        assert check.figure == pytest.approx(100 * float(expected.mean()), abs=1e-4)
        smaller, larger = (evidence.worst_case(eps) for eps in evidence.eps)
        assert bool((larger <= smaller).all())
        assert (smaller < whole).any()


class TestGradients:
    def test_d2_equals_plain_autograd(self, retrieval: Audited) -> None:
        """Of the mainstay loss at the image, in float64."""
        evidence = retrieval("frsf", n=30)
        victim = evidence.victim
        assert isinstance(victim.task, Hashing)
        images, targets = victim.split.images / 255, victim.split.targets
        train = victim.reference.train.double()
        similar = (targets[:, None] == victim.reference.train_targets).double()
        relevant, others = (one @ train / one.sum(1, keepdim=True) for one in (similar, 1 - similar))
        code = torch.where(relevant - others >= 0, 1.0, -1.0)

        def gradient(network: nn.Module) -> Tensor:
            leaf = images.clone().requires_grad_()
            v = torch.tanh(0.1 * network(leaf).double()) * code
            weight = (v > -0.5).double()
            loss = (weight * (v + 2) * v).sum(1) / weight.sum(1)
            return torch.autograd.grad(loss.sum(), leaf)[0].double().flatten(1)

        plain = retrieval(n=30).victim.network
        own, exact = gradient(victim.network), gradient(plain)
        cosines = (own * exact).sum(1) / (own.norm(dim=1) * exact.norm(dim=1))
        assert d2(evidence).figure == pytest.approx(float(cosines.mean()), abs=1e-4)


class TestD0:
    def test_too_few_queries_are_not_enough(self, retrieval: Audited) -> None:
        assert d0(retrieval(n=8)).status is Status.ok
        check = d0(retrieval(n=7))
        assert (check.status, check.text) == (Status.error, "only 7 samples: too few to compare attacks")

    def test_codes_that_find_nothing_cannot_be_attacked(self, retrieval: Audited) -> None:
        evidence = retrieval()
        useless = torch.full((60,), evidence.chance).double()
        evidence.victim = replace(evidence.victim, score=tasks.Score.mean(useless))
        check = d0(evidence)
        assert (check.status, "is no more than chance" in check.text) == (Status.error, True)


class TestChance:
    def test_is_the_mean_over_random_orders(self, retrieval: Audited) -> None:
        evidence = retrieval()
        labels = evidence.victim.reference.labels.values
        generator = np.random.default_rng(0)
        found = []
        for target in evidence.victim.split.targets.tolist():
            relevant = generator.permutation(labels == target)
            hits = np.cumsum(relevant)[relevant]
            found.append(float((hits / (np.flatnonzero(relevant) + 1)).mean()))
        assert evidence.chance == pytest.approx(np.mean(found), abs=0.01)
        assert evidence.floor == evidence.chance


@pytest.fixture
def planned(retrieval: Audited) -> Audited:
    """``planned({"mainstay rule 2/255": 0.4, ...})``: the AP that attacks leave of each query, (n,) or
    of all. Without an attack it is 0.8."""

    def make(left: dict[str, float | Tensor], n: int = 40, eps: tuple[str, ...] = ("2/255",)) -> Evidence:
        def run(key: str, victim: Victim, attack: Attack, source: GradientSource, eps: str) -> Outcome:
            outcome = victim.begin()
            value = torch.as_tensor(left[key], dtype=torch.float32).expand(n)
            outcome.achieved = 1 - value[victim.samples]
            return outcome

        evidence = retrieval(n=n)
        score = tasks.Score.mean(torch.full((n,), 0.8).double())
        victim = replace(evidence.victim, score=score, samples=torch.arange(n))
        return replace(evidence, victim=victim, has_feedback=True, eps=list(eps), run=run)

    return make


def spread(mean: float, n: int = 40) -> Tensor:
    """Values from 0.1 below to 0.1 above."""
    return mean + torch.linspace(-0.1, 0.1, n)


AT_HALF: dict[str, float | Tensor] = {"mainstay rule 2/255": spread(0.4), "mainstay rule 4/255": 0.1}


class TestOnPlannedOutcomes:
    @pytest.mark.parametrize(
        ("exact", "status"), [(0.4, "ok"), (0.381, "ok"), (0.379, "masked"), (0.5, "ok"), (0.1, "masked")]
    )
    def test_d1_needs_more_than_two_points(self, exact: float, status: str, planned: Audited) -> None:
        check = d1(planned({**AT_HALF, "mainstay exact 2/255": spread(exact)}))
        assert check.status == status
        assert check.figure == pytest.approx(100 * (0.4 - exact), abs=1e-3)
        assert check.text.startswith("at 2/255 the own gradient leaves 40.0 %")

    def test_d1_needs_more_than_chance(self, planned: Audited) -> None:
        """Five of forty queries lose all: 5 points, and 2 of 32 signs give as much."""
        exact = torch.where(torch.arange(40) < 5, 0.0, 0.4)
        check = d1(planned({**AT_HALF, "mainstay rule 2/255": 0.4, "mainstay exact 2/255": exact}))
        assert (check.status, check.figure) == (Status.warn, pytest.approx(5))

    def test_the_eps_at_half_leaves_a_part_of_what_is_above_chance(self, planned: Audited) -> None:
        """Clean .8, chance .1: a quarter to three quarters of it are .28 to .63."""
        evidence = planned({"mainstay rule 2/255": 0.26, "mainstay rule 1/255": 0.3})
        assert evidence.chance == pytest.approx(0.1, abs=0.01)
        assert evidence.eps_at_half == "1/255"

    @pytest.mark.parametrize(
        ("large", "whole", "status"),
        [
            (0.05, 0.05, "ok"),
            (0.11, 0.05, "ok"),  # within its interval
            (0.2, 0.05, "warn"),
            (0.2, 0.2, "masked"),
            (0.05, 0.2, "masked"),
        ],
    )
    def test_d5_holds_chance_against_what_is_left(
        self, large: float, whole: float, status: str, planned: Audited
    ) -> None:
        evidence = planned({"mainstay rule 64/255": spread(large), "mainstay rule 1.0": spread(whole)})
        check = d5(evidence)
        assert check.status == status
        assert check.threshold == f"<= {100 * evidence.chance:.3g}"

    @pytest.mark.parametrize(("rise", "status"), [(0.0, "ok"), (0.01, "warn")])
    def test_d6_sees_what_rises_beyond_its_error(self, rise: float, status: str, planned: Audited) -> None:
        low = 0.1 * spread(0.5)
        left = {
            "mainstay rule 2/255": spread(0.4),
            "mainstay rule 64/255": low,
            "mainstay rule 1.0": low + rise,
        }
        check = d6(planned(left))
        assert (check.status, check.figure) == (status, pytest.approx(100 * rise, abs=1e-4))
        assert check.text == "largest rise of PGD's mAP@all, from 64/255 to 1.0"

    @pytest.mark.parametrize(("noise", "status"), [(0.41, "ok"), (0.404, "warn"), (0.3, "warn")])
    def test_d9_noise_must_leave_half_a_point_more(self, noise: float, status: str, planned: Audited) -> None:
        check = d9(planned({"mainstay rule 2/255": 0.4, "noise none 2/255": noise}))
        assert (check.status, check.figure) == (status, pytest.approx(100 * (noise - 0.4), abs=1e-4))


class TestComparison:
    def test_values_are_compared_by_a_permutation_test(self) -> None:
        generator = torch.Generator().manual_seed(0)
        a, b = torch.rand(2, 30, generator=generator, dtype=torch.float64)
        pair = compare(a, b)
        assert isinstance(pair, PairedValues)
        difference = (a - b).numpy()
        assert pair.p == permutation_test(difference)
        assert pair.points == pytest.approx(100 * difference.mean())
        assert pair.points == pytest.approx(pair.percent_a - pair.percent_b)
        assert pair.z == pytest.approx(difference.sum() / np.sqrt((difference**2).sum()))

    @pytest.mark.parametrize("level", [0.0, 1.0])
    def test_of_flags_written_as_values_both_agree(self, level: float) -> None:
        """McNemar's test is the permutation test of flags."""
        a, b = torch.arange(20) < 12, torch.arange(20) < 4
        counts, values = compare(a, b), compare(a.double(), b.double())
        for name in ("percent_a", "percent_b", "points", "p", "z"):
            assert getattr(values, name) == pytest.approx(getattr(counts, name))
        found = most_significant({"counts": counts, "values": values}, level)
        assert found[2] is Status.masked

    def test_equal_values_do_not_differ(self) -> None:
        same = compare(torch.full((9,), 0.3), torch.full((9,), 0.3))
        assert (same.points, same.p, same.z) == (0, 1, 0)

    def test_different_numbers_of_samples_cannot_be_paired(self) -> None:
        with pytest.raises(ValueError, match="cannot be paired"):
            compare(torch.zeros(3), torch.zeros(4))

    def test_surely_above_is_the_lower_end_of_the_interval(self) -> None:
        values = spread(0.5)
        low, _ = mean_interval(values.double().numpy())
        assert surely_above(values, low - 1e-6)
        assert not surely_above(values, low + 1e-6)


class TestVerdict:
    def judge(self, **statuses: str) -> tuple[str, list[str]]:
        """All checks ok but those named and those that do not apply."""
        found = dict.fromkeys(CHECKS, "ok") | dict.fromkeys(NOT_APPLICABLE, "not run") | statuses
        results = [CheckResult(Status(status), id=name) for name, status in found.items()]
        judged, because = verdict(results, [], NOT_APPLICABLE)
        return str(judged), because

    @pytest.mark.parametrize(
        ("statuses", "expected"),
        [
            ({}, ("NOT MASKED", ["D1", "D16", "D4", "D5", "D8"])),
            ({"D8": "not run"}, ("INCONCLUSIVE", ["D8"])),
            ({"D4": "warn"}, ("INCONCLUSIVE", ["D4"])),
            ({"D5": "warn"}, ("INCONCLUSIVE", ["D5"])),  # no attack by labels settles it
            ({"D5": "warn", "D8": "masked"}, ("MASKED", ["D8"])),
            ({"D9": "warn"}, ("NOT MASKED", ["D1", "D16", "D4", "D5", "D8"])),
        ],
    )
    def test_truth_table(self, statuses: dict[str, str], expected: tuple[str, list[str]]) -> None:
        assert self.judge(**statuses) == expected


def test_the_profile_names_what_there_is() -> None:
    task = Hashing(HashingConfig("hashing"), 10)
    assert task.audit.loss in task.objectives
    assert task.audit.unsaturated in task.objectives
    assert set(task.audit.not_applicable) <= set(CHECKS)
    outputs = torch.tensor([[0.0, 10.0], [-10.0, 10.0], [0.1, -0.1]])
    assert task.saturated(outputs, None).tolist() == [0.5, 1, 0]  # type: ignore[arg-type]
