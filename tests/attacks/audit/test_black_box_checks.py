"""D7, D8, D13: whether an attack without the network's gradient beats one that has it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from sstune.attacks.attack import ATTACKS
from sstune.attacks.audit import CheckResult, Evidence
from sstune.attacks.audit.black_box import d7, d8, d13
from sstune.attacks.evaluation import run_attack
from sstune.backbones import Network
from sstune.schema import SquareConfig
from sstune.schema.audit import Status

Audited = Callable[..., Evidence]
Diagnostic = Callable[[Evidence], CheckResult]
EPS = ["2/255", "8/255"]


def made(evidence: Evidence) -> set[str]:
    return {key for key in evidence.cells if not key.startswith("pgd")}


@pytest.mark.parametrize(("check", "attack"), [(d7, "square"), (d13, "rays")])
class TestOnPlannedOutcomes:
    """Of 100 samples 90 are right; PGD leaves the first so many of them."""

    def evidence(self, planned: Audited, attack: str, pgd: int, left: int, others: torch.Tensor) -> Evidence:
        outcomes = {"pgd rule 2/255": 60, "pgd rule 8/255": pgd, f"{attack} none 8/255 left": left}
        return planned({**outcomes, f"{attack} none 8/255 others": others}, 100, EPS, clean=90)

    def withstood(self, pgd: int, n: int) -> torch.Tensor:
        """The first n of those that PGD broke withstand the black box."""
        sample = torch.arange(100)
        return (sample >= pgd) & (sample < pgd + n)

    @pytest.mark.parametrize(
        ("left", "others", "status", "figure"),
        [
            (40, 50, "ok", 0),  # what can matter no more is not asked for
            (37, 0, "ok", 3),
            (36, 0, "warn", 4),  # four may be chance, p = 0.125
            (35, 0, "warn", 5),
            (35, 5, "ok", 0),
            (34, 0, "masked", 6),
            (34, 1, "warn", 5),  # 6 to 1 is p = 0.125
            (20, 5, "masked", 15),
            (20, 40, "ok", -20),  # the black box is the weaker one
            (0, 0, "masked", 40),
        ],
    )
    def test_counts_discordant_pairs_both_ways(
        self, check: Diagnostic, attack: str, planned: Audited,
        left: int, others: int, status: str, figure: float,
    ) -> None:  # fmt: skip
        evidence = self.evidence(planned, attack, 40, left, self.withstood(40, others))
        found = check(evidence)
        assert (found.status, found.figure, found.n) == (status, pytest.approx(figure), 100)
        both = {f"{attack} none 8/255 {part}" for part in ("left", "others")}
        assert made(evidence) == (both if left < 40 else {f"{attack} none 8/255 left"})

    def test_looks_where_the_white_box_has_left_something(
        self, check: Diagnostic, attack: str, planned: Audited
    ) -> None:
        left = {"pgd rule 2/255": 60, "pgd rule 8/255": 5, f"{attack} none 2/255 left": 40}
        left |= {f"{attack} none 2/255 others": 0}
        evidence = planned(left, 100, EPS, clean=90)
        assert check(evidence).status is Status.masked

    def test_goes_below_what_was_asked_for_where_nothing_is_left(
        self, check: Diagnostic, attack: str, planned: Audited
    ) -> None:
        left = {"pgd rule 2/255": 0, "pgd rule 8/255": 0, "pgd rule 1/255": 20, "pgd rule 0.5/255": 50}
        left |= {f"{attack} none 1/255 left": 10, f"{attack} none 1/255 others": 0}
        evidence = planned(left, 100, EPS, clean=90)
        assert check(evidence).status is Status.masked

    def test_takes_fewer_samples_than_asked_for_where_there_are_fewer(
        self, check: Diagnostic, attack: str, planned: Audited
    ) -> None:
        left = {"pgd rule 8/255": 15, f"{attack} none 8/255 left": 15}
        evidence = planned(left, 30, ["8/255"], black_box_n=200, label_n=100)
        assert check(evidence).n == 30


def test_square_in_two_parts_is_square_on_all(converted: Callable[[str], Network], audited: Audited) -> None:
    """A masked network: what each part breaks is what Square at these settings breaks of those samples."""
    evidence = audited(converted("fa"), eps=["64/255"])
    check = d7(evidence)
    assert check.status is Status.masked
    some = evidence.black_box_samples
    white = evidence.pgd(evidence.white_box, "64/255").robust[some]
    square = ATTACKS["square"](SquareConfig("square", ["64/255"], queries=100), 0)
    clean = evidence.victim.clean[some]
    right = clean.clone()
    for part in (white, clean & ~white):
        outcome = run_attack(evidence.victim.take(some[part]), square, evidence.white_box, 64 / 255, 128)
        right[part] = outcome.robust
    assert check.figure == pytest.approx(100 * float(white.double().mean() - right.double().mean()))


class TestD8:
    @pytest.mark.parametrize(
        ("transfer", "n", "eps", "status"),
        [
            ({"2/255": 50, "8/255": 40}, 100, EPS, "ok"),
            ({"2/255": 80, "8/255": 34}, 100, EPS, "warn"),  # 6 of 6 is p = 0.031, of two eps
            ({"2/255": 80, "8/255": 33}, 100, EPS, "masked"),
            ({"8/255": 34}, 100, EPS[1:], "masked"),
            ({"8/255": 32}, 5000, EPS[1:], "ok"),  # 8 of 5000 are 0.16 points
        ],
    )
    def test_holds_the_strongest_transfer_against_pgd(
        self, planned: Audited, transfer: dict[str, int], n: int, eps: list[str], status: str
    ) -> None:
        left = {f"pgd rule {each}": 50 if each == "2/255" else 40 for each in eps}
        left |= {f"mifgsm surrogate other {each}": k for each, k in transfer.items()}
        assert d8(planned(left, n, eps, clean=80)).status == status

    def test_makes_all_steps_on_the_other_network_through_its_exact_gradient(
        self, network: Network, other: Network, audited: Audited
    ) -> None:
        """Against MI-FGSM written out: Dong et al. 2018, algorithm 1, 20 steps of eps/4."""
        evidence = audited(network, other)
        x = images = evidence.victim.split.images / 255
        labels, eps, velocity = evidence.victim.split.targets, 24 / 255, torch.zeros(())
        for _ in range(20):
            x = x.detach().requires_grad_()
            loss = torch.nn.functional.cross_entropy(other(x), labels, reduction="sum")
            gradient = torch.autograd.grad(loss, x)[0]
            velocity = velocity + gradient / gradient.abs().mean((1, 2, 3), keepdim=True)
            x = (images + (x + eps / 4 * velocity.sign() - images).clamp(-eps, eps)).clamp(0, 1)
        right = (network(x).argmax(1) == labels) & evidence.victim.clean
        assert torch.equal(evidence.transfer("24/255").robust, right)
