"""D3 to D6, D9, D14, D15: whether the attack behaves as one that works."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from torch import nn

from sstune.attacks.audit import Cell, Evidence, audit
from sstune.attacks.audit.evidence import Subset
from sstune.attacks.audit.strength import d3, d4, d5, d6, d9, d14, d15
from sstune.attacks.audit.survivors import strengthened
from sstune.attacks.outcome import Outcome
from sstune.backbones import Network
from sstune.quantities import parse_eps
from sstune.schema import Gradient
from sstune.schema.audit import Status

Audited = Callable[..., Evidence]
TWO = ["2/255", "8/255"]
# PGD's and, at the eps where about half are left, what else may be asked for.
HALF = {"pgd rule 2/255": 500, "pgd rule 4/255": 200, "pgd rule 8/255": 100}


@pytest.mark.parametrize(
    ("fgsm", "status", "figure"), [(505, "ok", -0.5), (495, "ok", 0.5), (494, "warn", 0.6)]
)
def test_d3_pgd_may_leave_half_a_point_more_than_fgsm(
    planned: Audited, fgsm: int, status: str, figure: float
) -> None:
    left = {**HALF, "fgsm rule 2/255": fgsm, "fgsm rule 8/255": 400}
    check = d3(planned(left, 1000, TWO))
    assert (check.status, check.figure) == (status, pytest.approx(figure))
    assert check.text.endswith("2/255")


class TestD4:
    """Of 1000 samples PGD leaves 500 at 2/255."""

    ROUNDS = (
        ("steps=40 step_size=eps/8 loss=margin", "restarts=3"),
        ("steps=100 step_size=eps/20 restarts=2 loss=margin", "restarts=6"),
        ("steps=200 step_size=eps/40 restarts=4 loss=margin", "restarts=18"),
    )

    def evidence(self, planned: Audited, left: list[int], attack: int = 0) -> Evidence:
        """The first or second attack of each round leaves so many; a round more may not be made."""
        plan: dict[str, int | torch.Tensor] = {"pgd rule 2/255": 500, "pgd rule 4/255": 49}
        for number, of_round in enumerate(self.ROUNDS):
            for which, changes in enumerate(of_round):
                k = left[min(number, len(left) - 1)] if which == attack else 500
                plan[f"pgd {changes} rule 2/255 round {number}"] = k
        return planned(plan, 1000, TWO)

    @pytest.mark.parametrize("attack", [0, 1])
    @pytest.mark.parametrize(
        ("left", "rounds", "status"),
        [
            ([500], 1, "ok"),
            ([490], 1, "ok"),  # another point
            ([489, 489], 2, "ok"),
            ([489, 478, 458], 3, "ok"),  # 4.2 points, 2 of them in the last round
            ([489, 478, 457], 3, "warn"),
            ([440, 440], 2, "ok"),  # 6 points
            ([439, 439], 2, "masked"),
            ([489, 478, 439], 3, "masked"),
        ],
    )
    def test_stronger_attacks_may_find_six_points_and_go_on_after_one(
        self, left: list[int], rounds: int, status: str, attack: int, planned: Audited
    ) -> None:
        evidence = self.evidence(planned, left, attack)
        check = d4(evidence)
        assert check.status == status
        assert check.figure == pytest.approx((500 - left[-1]) / 10)
        made = [key for key in evidence.cells if " round " in key]
        assert len(made) == 2 * rounds

    def test_attacks_what_the_others_have_left(self, planned: Audited) -> None:
        sample = torch.arange(1000)
        first, second = self.ROUNDS[0]
        plan = {
            "pgd rule 2/255": sample < 500,
            "pgd rule 4/255": sample < 49,
            f"pgd {first} rule 2/255 round 0": (sample >= 4) & (sample < 500),
            f"pgd {second} rule 2/255 round 0": (sample < 494),
        }
        evidence = planned(plan, 1000, TWO)
        left, gain = strengthened(evidence, "2/255")
        assert torch.equal(left, (sample >= 4) & (sample < 494))
        assert gain == pytest.approx(1)
        on = {key: cell.subset.index.tolist() for key, cell in evidence.cells.items() if " round " in key}
        assert list(on.values()) == [[*range(500)], [*range(4, 500)]]


class TestD5:
    """Of 500 samples in ten classes. The lower end of the 95 % interval is what counts."""

    def judge(
        self, planned: Audited, large: int, whole: int, rays: int = 0, labels: torch.Tensor | None = None
    ) -> tuple[str, str]:
        left = {"pgd rule 2/255": 250, "pgd rule 4/255": 0, "pgd rule 64/255": large, "pgd rule 1.0": whole}
        left["rays none 64/255 left"] = rays
        check = d5(planned(left, 500, labels=labels, label_n=100))
        assert check.n == 500
        return str(check.status), check.text

    def test_chance_and_then_nothing_is_as_it_should_be(self, planned: Audited) -> None:
        assert self.judge(planned, 50, 0)[0] == "ok"
        assert self.judge(planned, 0, 0)[0] == "ok"

    def test_somewhat_more_than_chance_may_be_chance(self, planned: Audited) -> None:
        """Wilson's interval of 63 of 500 contains a tenth, that of 64 does not."""
        assert lower_end(63, 500) < 0.1 < lower_end(64, 500)
        assert self.judge(planned, 63, 0)[0] == "ok"
        assert self.judge(planned, 64, 0)[0] == "masked"

    def test_chance_is_what_a_constant_answer_gets(self, planned: Audited) -> None:
        labels = (torch.arange(500) - 299).clamp_min(0) % 10
        assert int((labels == 0).sum()) > 300
        assert self.judge(planned, 300, 0, labels=labels)[0] == "ok"
        assert self.judge(planned, 400, 0, labels=labels)[0] == "masked"

    @pytest.mark.parametrize(
        ("rays", "status", "points"),
        [(400, "warn", 0), (396, "warn", 0.8), (360, "masked", 8), (0, "masked", 80)],
    )
    def test_what_labels_cannot_break_either_is_not_held_against_it(
        self, rays: int, status: str, points: float, planned: Audited
    ) -> None:
        """RayS is tried on some of the 400."""
        found, text = self.judge(planned, 400, 0, rays=rays)
        assert found == status
        said = float(text.split("RayS breaks ")[1].split()[0])
        assert said == pytest.approx(points, abs=1)

    def test_a_constant_answer_stays_right_at_any_eps(self, audited: Audited) -> None:
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
        nn.init.zeros_(network[1].weight)
        network[1].bias.data.copy_(torch.eye(10)[3])
        check = d5(audited(network))
        assert check.status is Status.ok
        assert check.figure is not None
        assert check.figure > 5

    def test_at_eps_1_a_sample_that_needs_more_steps_is_a_warning(self, planned: Audited) -> None:
        assert lower_end(9, 500) < 0.01 < lower_end(10, 500)
        assert self.judge(planned, 0, 1)[0] == "warn"
        assert self.judge(planned, 0, 9)[0] == "warn"
        assert self.judge(planned, 0, 10)[0] == "masked"


def lower_end(correct: int, n: int) -> float:
    """Wilson's: the smallest share p whose distance from the one found is 1.96 standard errors under p."""
    z, found = float(norm.ppf(0.975)), correct / n
    below, above = 0.0, found
    for _ in range(100):
        p = (below + above) / 2
        if found - p > z * (p * (1 - p) / n) ** 0.5:
            below = p
        else:
            above = p
    return below


@pytest.mark.parametrize(
    ("left", "rise", "status"),
    [
        ((900, 500, 100, 0), 0, "ok"),
        ((500, 504, 100, 0), 0.4, "ok"),  # 4 of 4: exactly 2 standard errors
        ((500, 505, 100, 0), 0.5, "warn"),
        ((900, 500, 0, 5), 0.5, "warn"),
    ],
)
def test_d6_accuracy_may_not_rise_with_eps(
    planned: Audited, left: tuple[int, ...], rise: float, status: str
) -> None:
    eps = ["2/255", "8/255", "64/255", "1.0"]
    check = d6(planned({f"pgd rule {name}": k for name, k in zip(eps, left, strict=True)}, 1000, eps[:2]))
    assert (check.status, check.figure) == (status, pytest.approx(rise))


def test_d6_compares_each_eps_once(planned: Audited) -> None:
    """64/255 is asked for and is one of the large ones."""
    evidence = planned({"pgd rule 64/255": 60, "pgd rule 1.0": 50}, 100, ["64/255"])
    assert d6(evidence).text.endswith("from 64/255 to 1.0")


def test_d6_sees_a_rise_that_a_larger_one_within_its_error_hides(planned: Audited) -> None:
    n = torch.arange(1000)
    left: Mapping[str, torch.Tensor] = {
        "pgd rule 1/255": n < 500,
        "pgd rule 2/255": (n >= 190) & (n < 711),  # 211 more and 190 fewer: 21, by 2 * sqrt(401) = 40
        "pgd rule 64/255": n < 300,
        "pgd rule 1.0": n < 320,  # 20 more, by 2 * sqrt(20) = 9
    }
    check = d6(planned(left, 1000, ["1/255", "2/255"]))
    assert (check.status, check.figure) == (Status.warn, pytest.approx(2.1))


@pytest.mark.parametrize(("noise", "status"), [(550, "ok"), (506, "ok"), (505, "warn"), (400, "warn")])
def test_d9_noise_must_leave_half_a_point_more(planned: Audited, noise: int, status: str) -> None:
    check = d9(planned({**HALF, "noise none 2/255": noise}, 1000, TWO))
    assert (check.status, check.figure) == (status, pytest.approx((noise - 500) / 10))


def test_d14_counts_what_the_last_step_has_lost(
    converted: Callable[[str], Network], audited: Audited
) -> None:
    evidence = audited(converted("fa"))
    check = d14(evidence)
    kept, last = (
        evidence.cells[f"pgd {key}rule {evidence.eps_at_half}"].outcome for key in ("", "early_exit=False ")
    )
    lost = last.robust & ~kept.robust
    assert lost.any()
    assert not (kept.robust & ~last.robust).any()  # what is right at no step is right at the last
    assert (last.steps_to_success[lost] == -1).all()
    assert (check.status, check.figure) == (Status.report, pytest.approx(100 * float(lost.double().mean())))


class TestD15:
    def test_is_below_every_attack_and_falls_with_eps(
        self, converted: Callable[[str], Network], other: Network, audited: Audited
    ) -> None:
        evidence = audited(converted("fa"), other, estimate_queries=2000)
        check = {check.id: check for check in audit(evidence)}["D15"]
        worst = {eps: evidence.worst_case(eps) for eps in evidence.eps}
        for smaller, larger in zip(evidence.eps, evidence.eps[1:], strict=False):
            assert not (worst[larger] & ~worst[smaller]).any()
        attacks = {cell.attack.split()[0] for cell in evidence.cells.values()}
        assert attacks == {"pgd", "fgsm", "mifgsm", "noise", "square", "rays", "finite_difference"}
        for cell in evidence.cells.values():
            for eps in evidence.eps:
                if parse_eps(eps) >= parse_eps(cell.eps):
                    assert not (worst[eps][cell.subset.index] & ~cell.outcome.robust).any()
        assert check.figure == pytest.approx(100 * float(worst["64/255"].double().mean()))

    @given(data=st.data())
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
    def test_is_the_intersection_over_whatever_was_tried(self, planned: Audited, data: st.DataObject) -> None:
        evidence = planned({}, 20, ["1/255", "8/255"], clean=15)
        samples, each_eps = st.sets(st.integers(0, 19)), st.sampled_from(["1/255", "4/255", "8/255", "1.0"])
        cells = st.lists(st.tuples(each_eps, samples, samples), max_size=6)
        expected = {eps: set(range(15)) for eps in evidence.eps}
        for number, (eps, on, broken) in enumerate(data.draw(cells)):
            index = torch.tensor(sorted(on), dtype=torch.long)
            withstands = torch.tensor([s not in broken for s in sorted(on)], dtype=torch.bool)
            outcome = Outcome.begin(withstands, torch.zeros(len(index)))
            subset = Subset(index, index)
            evidence.cells[str(number)] = Cell("pgd", Gradient.rule, eps, "", outcome, subset)
            for larger in evidence.eps:
                if parse_eps(eps) <= parse_eps(larger):
                    expected[larger] -= on & broken
        for eps, samples in expected.items():
            assert set(evidence.worst_case(eps).nonzero().flatten().tolist()) == samples
        assert d15(evidence).figure == pytest.approx(100 * len(expected["8/255"]) / 20)
