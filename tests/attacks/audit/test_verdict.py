"""One verdict from all checks, and the verdicts on whole networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from wrong_gradients import ForeignFeedback

from sstune.attacks.audit import CHECK_FUNCTIONS, CheckResult, Evidence, audit, verdict
from sstune.backbones import Network
from sstune.datasets import Split, Splits
from sstune.schema.audit import CHECKS, DECIDING, Status, Verdict

Audited = Callable[..., Evidence]


def checks(**statuses: str) -> list[CheckResult]:
    """All of them ok but those named."""
    return [CheckResult(Status(statuses.get(name, "ok").replace("_", " ")), id=name) for name in CHECKS]


DECIDED = list(DECIDING)


def test_each_check_of_the_table_has_one_function() -> None:
    assert sorted(CHECK_FUNCTIONS) == sorted(CHECKS)


class TestOfChecks:
    @pytest.mark.parametrize(
        ("statuses", "skipped", "expected", "because"),
        [
            ({}, [], "NOT MASKED", DECIDED),
            *[({name: "masked"}, [], "MASKED", [name]) for name in DECIDED],
            ({"D13": "masked", "D5": "masked"}, [], "MASKED", ["D5", "D13"]),
            *[({name: "not_run"}, [], "INCONCLUSIVE", [name]) for name in DECIDED],
            ({"D8": "not_run"}, ["D8"], "NOT MASKED", [name for name in DECIDED if name != "D8"]),
            ({"D8": "not_run", "D7": "not_run"}, ["D8"], "INCONCLUSIVE", ["D7"]),
            ({"D8": "not_run", "D1": "masked"}, [], "MASKED", ["D1"]),
            *[
                ({name: "warn"}, [], "INCONCLUSIVE", [name])
                for name in ("D1", "D16", "D4", "D7", "D8", "D10", "D11", "D13")
            ],
            *[({name: "warn"}, [], "NOT MASKED", DECIDED) for name in ("D2", "D3", "D5", "D6", "D9", "D12")],
            ({"D7": "warn", "D8": "not_run"}, [], "INCONCLUSIVE", ["D7", "D8"]),
            ({"D7": "warn", "D1": "masked"}, [], "MASKED", ["D1"]),
            ({"D1": "report"}, [], "NOT MASKED", DECIDED[1:]),
            ({"D11": "report"}, [], "NOT MASKED", DECIDED),
            ({"D10": "warn", "D7": "masked"}, [], "MASKED", ["D7"]),
            ({"D0": "error"}, [], "INCONCLUSIVE", ["D0"]),
            ({"D0": "error", "D1": "masked"}, [], "INCONCLUSIVE", ["D0"]),  # figures mean nothing
            ({"D3": "error"}, [], "INCONCLUSIVE", ["D3"]),
            ({"D11": "error", "D7": "masked"}, [], "INCONCLUSIVE", ["D11"]),
            ({"D0": "not_run"}, ["D0"], "INCONCLUSIVE", ["D0"]),  # nobody looked whether they do
            (dict.fromkeys(DECIDED, "not_run"), DECIDED, "INCONCLUSIVE", DECIDED),  # cleared by nothing
            ({**dict.fromkeys(DECIDED, "not_run"), "D5": "ok"}, DECIDED, "NOT MASKED", ["D5"]),
        ],
    )
    def test_truth_table(
        self, statuses: dict[str, str], skipped: list[str], expected: str, because: list[str]
    ) -> None:
        assert verdict(checks(**statuses), skipped) == (Verdict(expected), because)

    @pytest.mark.parametrize(
        ("finds", "masked", "expected"),
        [
            ({"D7": 5.0, "D8": 1.2}, [], ("NOT MASKED", DECIDED)),
            ({"D7": 5.1}, [], ("INCONCLUSIVE", ["D7"])),
            ({"D13": 100.0, "D1": 6.0}, [], ("INCONCLUSIVE", ["D1", "D13"])),
            ({"D7": 5.1}, ["D7"], ("MASKED", ["D7"])),  # found for all that
            ({"D7": 5.1}, ["D4"], ("MASKED", ["D4"])),
        ],
    )
    def test_a_check_that_could_not_have_found_5_points_clears_nothing(
        self, finds: dict[str, float], masked: list[str], expected: tuple[str, list[str]]
    ) -> None:
        statuses = dict.fromkeys(masked, "masked")
        results = [replace(check, finds=finds.get(check.id)) for check in checks(**statuses)]
        assert verdict(results) == (Verdict(expected[0]), expected[1])


ALL = {"black_box_n": 200, "label_n": 200}
WITHOUT_FEEDBACK = [name for name in DECIDED if name != "D1"]


@pytest.fixture
def many(digits: Splits) -> Split:
    """Enough to find 5 points."""
    return digits.test.take(torch.arange(200))


def judge(evidence: Evidence, *skipped: str) -> tuple[Verdict, list[str], dict[str, CheckResult]]:
    found = {check.id: check for check in audit(evidence, skipped)}
    assert list(found) == list(CHECKS)
    assert all(check.title and check.text for check in found.values())
    return *verdict(list(found.values()), skipped), found


class TestOfNetworks:
    @pytest.mark.parametrize("eps", [["16/255", "32/255"], ["1/255"], ["0", "96/255"]])
    def test_of_bp_is_not_masked_at_whatever_eps(
        self, eps: list[str], network: Network, many: Split, audited: Audited
    ) -> None:
        """No other network is needed: the smoothed copy is one."""
        judged, because, found = judge(audited(network, split=many, eps=eps))
        assert (judged, because) == (Verdict.not_masked, WITHOUT_FEEDBACK)
        flagged = {name for name, check in found.items() if check.status is Status.warn}
        assert not flagged & {"D2", "D3", "D5", "D6", "D9", "D10", "D11", "D12"}

    def test_of_sham_is_not_masked(
        self, converted: Callable[[str], Network], other: Network, many: Split, audited: Audited
    ) -> None:
        judged, because, found = judge(audited(converted("sham"), other, many))
        assert (judged, because) == (Verdict.not_masked, DECIDED)
        assert found["D1"].figure == 0
        assert found["D2"].figure == pytest.approx(1)

    @pytest.mark.parametrize("rule", ["usf", "frsf", "brsf", "fa"])
    def test_of_rules_that_approximate_is_masked(
        self, rule: str, converted: Callable[[str], Network], audited: Audited
    ) -> None:
        """D16 does not need to know that there is a rule."""
        evidence = audited(converted(rule), eps=["96/255"], estimate_queries=10_000)
        judged, because, found = judge(evidence, "D4", "D7", "D8", "D13")
        assert judged is Verdict.masked
        assert "D1" in because
        assert (found["D16"].figure or 0) > 80

    def test_of_foreign_feedback_is_masked_by_differences_alone(
        self, network: Network, audited: Audited
    ) -> None:
        """Nothing of ours knows of this feedback: there is no exact gradient to compare with."""
        last = network.backbone.get_submodule("7")
        assert isinstance(last, nn.Linear)
        foreign = ForeignFeedback(512, 10)
        foreign.weight = last.weight
        (parent,) = [module for module in network.modules() if last in module.children()]
        parent.add_module("7", nn.Sequential(foreign, Plus(last.bias)))
        evidence = audited(network.eval(), estimate_queries=10_000)
        judged, because, found = judge(evidence, "D4", "D5", "D7", "D8", "D13")
        assert (judged, because) == (Verdict.masked, ["D16"])
        assert found["D1"].status is Status.report

    def test_of_a_constant_network_is_not_masked(self, audited: Audited, many: Split) -> None:
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
        nn.init.zeros_(network[1].weight)
        network[1].bias.data.copy_(torch.eye(10)[3])
        assert judge(audited(network, split=many, **ALL))[0] is not Verdict.masked

    def test_of_an_honestly_robust_network_is_not_masked(self, audited: Audited) -> None:
        """Which half of a black and white image is white withstands any eps below a half."""
        halves, split = two_halves()
        judged, because, found = judge(audited(halves, None, split, ["16/255", "96/255"], n_classes=2, **ALL))
        assert (judged, because) == (Verdict.not_masked, WITHOUT_FEEDBACK)
        assert found["D15"].figure == 100

    def test_of_the_same_behind_a_flat_derivative_is_masked(self, audited: Audited) -> None:
        halves, split = two_halves()
        flat = nn.Sequential(Detached(), halves).eval()
        judged, because, found = judge(audited(flat, None, split, n_classes=2))
        assert (judged, because) == (Verdict.masked, ["D5"])  # even at eps = 1 all are left
        assert found["D10"].status is Status.warn


class Plus(nn.Module):
    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = bias

    def forward(self, logits: Tensor) -> Tensor:
        return logits + self.bias


class Detached(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.detach()


def two_halves() -> tuple[nn.Module, Split]:
    """Images that are white on the left (class 0) or on the right, and the sums of their halves."""
    linear = nn.Linear(64, 2, bias=False)
    columns = (torch.arange(64) % 8 < 4).float()
    linear.weight.data.copy_(torch.stack([columns, 1 - columns]))
    labels = torch.arange(200) % 2
    images = 255 * torch.stack([columns, 1 - columns])[labels].reshape(-1, 1, 8, 8)
    return nn.Sequential(nn.Flatten(), linear).eval(), Split(images.byte(), labels)


class TestChecksThatCannotBeMade:
    def test_are_left_out_on_request_and_say_so(self, network: Network, audited: Audited) -> None:
        found = list(audit(audited(network), [name for name in CHECKS if name not in ("D3", "D15")]))
        ran = [check.id for check in found if check.status is not Status.not_run]
        assert ran == ["D3", "D15"]
        assert {check.text for check in found if check.status is Status.not_run} == {"skipped by audit.skip"}

    def test_for_images_that_an_attack_is_not_for_say_so(self, audited: Audited) -> None:
        """Square needs as many rows as columns."""
        split = Split(torch.randint(0, 256, (30, 1, 2, 9), dtype=torch.uint8), torch.zeros(30).long())
        network = nn.Sequential(nn.Flatten(), nn.Linear(18, 2)).eval()
        network[1].bias.data.copy_(torch.tensor([1e-3, 0]))
        network[1].weight.data.zero_()
        skipped = [name for name in CHECKS if name != "D7"]
        found = {check.id: check for check in audit(audited(network, None, split, n_classes=2), skipped)}
        assert found["D7"].status is Status.not_run
        assert "square" in found["D7"].text

    def test_because_an_image_is_not_finite_are_errors(self, audited: Audited, test_split: Split) -> None:
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
        evidence = audited(network)
        network[1].weight.data.fill_(torch.nan)
        found = list(audit(evidence, ["D8"]))
        assert verdict(found, ["D8"])[0] is Verdict.inconclusive
        assert found[0].status is Status.error


def test_random_networks_are_audited_alike_each_time(network: Network, audited: Audited) -> None:
    noisy = nn.Sequential(Noise(), network).eval()
    found = []
    for seed in range(2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        found.append(list(audit(audited(noisy), ["D4", "D8", "D13", "D16"])))
        assert torch.equal(torch.get_rng_state(), state)
    assert found[0] == found[1]
    assert {check.id: check.status for check in found[0]}["D11"] is Status.error


class Noise(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images + 0.1 * torch.randn_like(images)
