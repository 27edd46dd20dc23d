"""One verdict from all checks, and the verdicts on whole networks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sstune.attacks.audit import CHECK_FUNCTIONS, CheckResult, Evidence, audit, verdict
from sstune.backbones import Network
from sstune.datasets import Split
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
            ({"D8": "not_run"}, ["D8"], "NOT MASKED", ["D1", "D5", "D7", "D13"]),
            ({"D8": "not_run", "D7": "not_run"}, ["D8"], "INCONCLUSIVE", ["D7"]),
            ({"D8": "not_run", "D1": "masked"}, [], "MASKED", ["D1"]),
            *[
                ({name: "warn"}, [], "INCONCLUSIVE", [name])
                for name in ("D1", "D7", "D8", "D10", "D11", "D13")
            ],
            *[
                ({name: "warn"}, [], "NOT MASKED", DECIDED)
                for name in ("D2", "D3", "D4", "D5", "D6", "D9", "D12")
            ],
            ({"D7": "warn", "D8": "not_run"}, [], "INCONCLUSIVE", ["D7", "D8"]),
            ({"D7": "warn", "D1": "masked"}, [], "MASKED", ["D1"]),
            ({"D1": "report"}, [], "NOT MASKED", ["D5", "D7", "D8", "D13"]),
            ({"D11": "report"}, [], "NOT MASKED", DECIDED),
            ({"D10": "warn", "D7": "masked"}, [], "MASKED", ["D7"]),
            ({"D0": "error"}, [], "INCONCLUSIVE", ["D0"]),
            ({"D0": "error", "D1": "masked"}, [], "INCONCLUSIVE", ["D0"]),  # figures mean nothing
            ({"D4": "error"}, [], "INCONCLUSIVE", ["D4"]),
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


class TestOfNetworks:
    def judge(self, evidence: Evidence) -> tuple[Verdict, list[str], dict[str, CheckResult]]:
        found = {check.id: check for check in audit(evidence)}
        assert list(found) == list(CHECKS)
        assert all(check.title and check.text for check in found.values())
        return *verdict(list(found.values())), found

    def test_of_bp_is_not_masked(self, network: Network, other: Network, audited: Audited) -> None:
        judged, because, found = self.judge(audited(network, other))
        assert (judged, because) == (Verdict.not_masked, ["D5", "D7", "D8", "D13"])
        flagged = {name for name, check in found.items() if check.status is Status.warn}
        assert not flagged & {"D2", "D3", "D5", "D6", "D8", "D9", "D10", "D11", "D12"}

    def test_of_sham_is_not_masked(
        self, converted: Callable[[str], Network], other: Network, audited: Audited
    ) -> None:
        judged, because, found = self.judge(audited(converted("sham"), other))
        assert (judged, because) == (Verdict.not_masked, DECIDED)
        assert found["D1"].figure == 0
        assert found["D2"].figure == pytest.approx(1)

    @pytest.mark.parametrize("rule", ["usf", "frsf", "brsf", "fa"])
    def test_of_rules_that_approximate_is_masked(
        self, rule: str, converted: Callable[[str], Network], other: Network, audited: Audited
    ) -> None:
        judged, because, _ = self.judge(audited(converted(rule), other))
        assert judged is Verdict.masked
        assert "D1" in because

    def test_without_another_network_it_says_that_it_lacks_one(
        self, network: Network, audited: Audited
    ) -> None:
        judged, because, found = self.judge(audited(network))
        assert (judged, because) == (Verdict.inconclusive, ["D8"])
        assert "audit.surrogate" in found["D8"].text

    @pytest.mark.parametrize("eps", [["1/255"], ["96/255", "1.0"], ["0", "96/255"]])
    def test_does_not_depend_on_eps_at_which_there_is_nothing_to_tell(
        self, eps: list[str], network: Network, converted: Callable[[str], Network], audited: Audited
    ) -> None:
        """Everything or nothing withstands, through whatever gradient."""
        assert self.judge(audited(converted("frsf"), eps=eps))[0] is Verdict.masked
        found = list(audit(audited(network, eps=eps), ["D8"]))
        assert verdict(found, ["D8"]) == (Verdict.not_masked, ["D5", "D7", "D13"])

    def test_of_an_honestly_robust_network_is_not_masked(self, audited: Audited) -> None:
        """Which half of a black and white image is white withstands any eps below a half."""
        halves, split = two_halves()
        evidence = audited(halves, None, split, ["16/255", "96/255"], n_classes=2)
        found = list(audit(evidence, ["D8"]))
        assert verdict(found, ["D8"]) == (Verdict.not_masked, ["D5", "D7", "D13"])
        assert {check.id: check for check in found}["D15"].figure == 100

    def test_of_the_same_behind_a_flat_derivative_is_masked(self, audited: Audited) -> None:
        halves, split = two_halves()
        found = list(
            audit(audited(nn.Sequential(Detached(), halves).eval(), None, split, n_classes=2), ["D8"])
        )
        judged, because = verdict(found, ["D8"])
        assert (judged, because) == (Verdict.masked, ["D5"])  # even at eps = 1 all are left
        assert found[10].status is Status.warn


class Detached(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.detach()


def two_halves() -> tuple[nn.Module, Split]:
    """Images that are white on the left (class 0) or on the right, and the sums of their halves."""
    linear = nn.Linear(64, 2, bias=False)
    columns = (torch.arange(64) % 8 < 4).float()
    linear.weight.data.copy_(torch.stack([columns, 1 - columns]))
    labels = torch.arange(60) % 2
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
        found.append(list(audit(audited(noisy), ["D4", "D8", "D13"])))
        assert torch.equal(torch.get_rng_state(), state)
    assert found[0] == found[1]
    assert found[0][11].status is Status.error


class Noise(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images + 0.1 * torch.randn_like(images)
