"""D7, D8, D13: whether an attack without the network's gradient breaks what PGD leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from sstune.attacks.attack import ATTACKS
from sstune.attacks.audit import CheckResult, Evidence
from sstune.attacks.audit.black_box import d7, d8, d13
from sstune.attacks.audit.evidence import Subset
from sstune.attacks.audit.hidden import samples_needed
from sstune.attacks.audit.survivors import strengthened
from sstune.attacks.evaluation import run_attack
from sstune.backbones import Network
from sstune.datasets import evenly_spaced
from sstune.schema import Gradient, SquareConfig
from sstune.schema.audit import Status

Audited = Callable[..., Evidence]
Diagnostic = Callable[[Evidence], CheckResult]
PGD = {"pgd rule 2/255": 400, "pgd rule 4/255": 49}  # of 1000; only 2/255 is probed
SMOOTHED, OTHER = ("mifgsm surrogate smoothed copy", "mifgsm surrogate other")


@pytest.mark.parametrize(("check", "attack"), [(d7, "square"), (d13, "rays")])
class TestOnPlannedOutcomes:
    """Of 1000 samples PGD leaves the first 400; some of these are attacked, and stand for all of them."""

    @pytest.mark.parametrize(
        ("hidden", "status"), [(0, "ok"), (10, "ok"), (100, "masked"), (400, "masked")]
    )  # of the 400
    def test_what_is_broken_stands_for_all_that_is_left(
        self, check: Diagnostic, attack: str, planned: Audited, hidden: int, status: str
    ) -> None:
        sample = torch.arange(1000)
        withstood = (sample < 400) & (sample * hidden % 400 >= hidden)  # spread evenly
        evidence = planned({**PGD, f"{attack} none 2/255 left": withstood}, 1000)
        found = check(evidence)
        wanted = samples_needed(1000, 400, 1000, 0.05)
        some = evenly_spaced(wanted, 400)
        (cell,) = [cell for cell in evidence.cells.values() if cell.attack == attack]
        assert torch.equal(cell.subset.index, some)
        broken = int((~withstood[some]).sum())
        assert found.figure == pytest.approx(40 * broken / wanted)
        assert (found.status, found.n) == (status, 1000)
        assert found.finds is not None
        assert found.finds <= 5

    def test_leaves_alone_what_stronger_pgd_has_broken(
        self, check: Diagnostic, attack: str, planned: Audited
    ) -> None:
        left = {**PGD, "pgd restarts=3 rule 2/255 round 0": torch.arange(1000) < 390}
        evidence = planned({**left, f"{attack} none 2/255 left": 0}, 1000)
        assert check(evidence).figure == pytest.approx(39)

    def test_attacks_no_more_than_allowed_and_says_so(
        self, check: Diagnostic, attack: str, planned: Audited
    ) -> None:
        left = {**PGD, f"{attack} none 2/255 left": 400}
        found = check(planned(left, 1000, black_box_n=20, label_n=20))
        key = {"square": "black_box_n", "rays": "label_n"}[attack]
        wanted = samples_needed(1000, 400, 1000, 0.05)
        assert f"audit.{key}={wanted} would do" in found.text
        assert (found.finds or 0) > 5

    def test_looks_at_every_probed_eps(self, check: Diagnostic, attack: str, planned: Audited) -> None:
        left = {"pgd rule 2/255": 400, "pgd rule 4/255": 100, "pgd rule 8/255": 0}
        left |= {f"{attack} none 2/255 left": 400, f"{attack} none 4/255 left": 0}
        found = check(planned(left, 1000))
        assert (found.status, found.figure) == (Status.masked, pytest.approx(10))
        assert found.text.startswith("at 4/255 ")


def test_square_on_some_is_square_on_these_samples(
    converted: Callable[[str], Network], audited: Audited
) -> None:
    """A masked network, against the attack itself on what PGD leaves."""
    evidence = audited(converted("fa"))
    check = d7(evidence)
    assert check.status is Status.masked
    eps = check.text.split()[1]
    (cell,) = [cell for cell in evidence.cells.values() if (cell.attack, cell.eps) == ("square", eps)]
    left, _ = strengthened(evidence, eps)
    index = cell.subset.index
    assert left[index].all()
    square = ATTACKS["square"](SquareConfig("square", [eps], queries=100), 0)
    radius = float(eps.split("/")[0]) / 255
    outcome = run_attack(evidence.victim.take(index), square, evidence.white_box, radius, 128)
    share = float((~outcome.robust).double().mean())
    assert check.figure == pytest.approx(100 * share * int(left.sum()) / 120)


class TestD8:
    @pytest.mark.parametrize(
        ("smoothed", "other", "status", "figure"),
        [
            (400, 400, "ok", 0),
            (390, 390, "ok", 1),
            (386, 400, "ok", 1.4),  # p = 0.134 of 14 of 400 where 10 are tolerated; they share 0.2
            (385, 400, "warn", 1.5),  # 0.081
            (383, 400, "warn", 1.7),  # 0.0254; they share 0.05
            (382, 400, "masked", 1.8),  # 0.0132
            (400, 382, "masked", 1.8),
            (0, 300, "masked", 40),
        ],
    )
    def test_holds_both_transfers_against_pgd(
        self, smoothed: int, other: int, status: str, figure: float, planned: Audited
    ) -> None:
        left = {**PGD, f"{SMOOTHED} 2/255 left": smoothed, f"{OTHER} 2/255 left": other}
        found = d8(planned(left, 1000))
        assert (found.status, found.figure) == (status, pytest.approx(figure))

    def test_without_another_network_it_transfers_from_the_smoothed_copy(self, planned: Audited) -> None:
        evidence = planned({**PGD, f"{SMOOTHED} 2/255 left": 300}, 1000)
        evidence.surrogate = None
        found = d8(evidence)
        assert (found.status, found.figure) == (Status.masked, pytest.approx(10))
        assert "the smoothed copy breaks" in found.text

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
        everything = Subset(torch.arange(120), torch.arange(120))
        assert torch.equal(evidence.transfer("24/255", everything).robust, right)


def test_the_copy_is_smoothed_also_where_the_network_is_compiled(network: Network, audited: Audited) -> None:
    """A compiled network stands beside the network itself, and knows nothing of the copy."""
    plain = audited(network)
    beside = audited(network, own={"forward": torch.compile(network, backend="eager")})
    everything = torch.arange(plain.n)
    some = Subset(everything, everything)
    found, expected = (one.smoothed("48/255", some).predictions for one in (beside, plain))
    own = plain.pgd(replace(plain.white_box, gradient=Gradient.surrogate), "48/255", some).predictions
    assert torch.equal(found, expected)
    assert not torch.equal(found, own)
