"""At which eps the audit looks, whatever was asked for; what it sees there, in worlds that are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from worlds import World

from sstune.attacks.audit import CheckResult, Evidence, audit, verdict
from sstune.attacks.audit.evidence import LARGEST, SMALLEST
from sstune.quantities import parse_eps
from sstune.schema.audit import CHECKS, DECIDING, Verdict

Planned = Callable[..., Evidence]
PLANNED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


class TestTheEpsAtHalf:
    @pytest.mark.parametrize(
        ("left", "expected"),
        [
            ({"2/255": 50}, "2/255"),
            ({"2/255": 23}, "2/255"),  # a quarter of 90 is 22.5
            ({"2/255": 67}, "2/255"),
            ({"2/255": 68, "4/255": 67}, "4/255"),
            ({"2/255": 90, "4/255": 90, "8/255": 30}, "8/255"),
            ({"2/255": 90, "4/255": 0, "3/255": 50}, "3/255"),  # between
            ({"2/255": 80, "4/255": 0, "3/255": 0, "2.5/255": 0, "2.25/255": 0, "2.125/255": 0}, "2/255"),
            ({"2/255": 22, "1/255": 23}, "1/255"),
            ({"2/255": 0, "1/255": 10, "0.5/255": 60}, "0.5/255"),
            ({"2/255": 90, "4/255": 90, "8/255": 90, "16/255": 90, "32/255": 90, "64/255": 89}, "64/255"),
        ],
    )
    def test_is_doubled_halved_and_bisected_from_2(
        self, left: dict[str, int], expected: str, planned: Planned
    ) -> None:
        """What is not in ``left`` must not be attacked; what was asked for does not matter."""
        plan: dict[str, int] = {f"pgd rule {eps}": k for eps, k in left.items()}
        assert planned(plan, 100, ["7/255"], clean=90).eps_at_half == expected

    @PLANNED
    @given(data=st.data())
    def test_is_found_between_the_smallest_and_the_largest_whatever_is_left(
        self, data: st.DataObject, planned: Planned
    ) -> None:
        """Even if an attack leaves more at a larger eps."""

        class Anything(dict[str, int]):
            def __missing__(self, key: str) -> int:
                return self.setdefault(key, data.draw(st.integers(0, 90)))

        evidence = planned(Anything(), 100, clean=90)
        at = evidence.probed_eps.index(evidence.eps_at_half)
        probed = [parse_eps(eps) for eps in evidence.probed_eps]
        before, doubled = probed[:at], probed[at:]
        assert doubled == pytest.approx([doubled[0] * 2**number for number in range(len(doubled))])
        assert SMALLEST / 2 <= probed[0] <= probed[-1] <= LARGEST
        # one more only at a cliff: a quarter of the 90 samples or fewer are left, more of them just before
        at_half = int(evidence.pgd(evidence.white_box, evidence.eps_at_half).robust.sum())
        smaller = [eps for eps in evidence.searched_eps if parse_eps(eps) < doubled[0]]
        assert before == [parse_eps(eps) for eps in smaller[-1:] if at_half < 90 / 4]

    def test_is_followed_by_its_doublings_as_long_as_5_points_are_left(self, planned: Planned) -> None:
        left = {"2/255": 60, "4/255": 6, "8/255": 5, "16/255": 4}
        assert planned({f"pgd rule {eps}": k for eps, k in left.items()}).probed_eps == [
            "2/255",
            "4/255",
            "8/255",
        ]


def deciding(evidence: Evidence, *skipped: str) -> tuple[Verdict, list[str], dict[str, CheckResult]]:
    """The verdict, what it rests on, and the checks that it depends on."""
    found = list(audit(evidence, skipped))
    results = {check.id: check for check in found if check.id in DECIDING}
    return *verdict(found, skipped), results


def of_world(planned: Planned, world: World, eps: Sequence[str] = ("8/255",), **config: Any) -> Evidence:
    return planned(world, len(world.true), eps, clean=world.true > 0, **config)


def radii(*groups: tuple[int, float]) -> Tensor:
    """So many samples of each radius."""
    return torch.cat([torch.full((n,), radius) for n, radius in groups])


def some(*fractions: float, n: int = 400) -> Tensor:
    """Radii spread evenly over the ``fractions``."""
    return torch.tensor(fractions)[torch.arange(n) % len(fractions)]


HONEST = some(0.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0, 20.0, 30.0)


class TestTheVerdict:
    def test_of_honest_robustness_is_not_masked(self, planned: Planned) -> None:
        judged, because, found = deciding(of_world(planned, World(HONEST, HONEST)))
        assert (judged, because) == (Verdict.not_masked, list(DECIDING))
        assert all(check.finds is None or check.finds <= 5 for check in found.values())

    @settings(PLANNED, max_examples=15)
    @given(
        true=st.lists(st.sampled_from([1.0, 2.0, 3.0, 5.0, 9.0, 17.0, 40.0]), min_size=400, max_size=400),
        hidden=st.sampled_from([1.0, 1.5, 3.0]),
        n_hidden=st.sampled_from([0, 4, 20, 200]),
        asked=st.lists(st.sampled_from([1, 2, 3, 8, 16, 32, 96, 255]), min_size=1, max_size=3, unique=True),
        more=st.sampled_from([0.5, 2, 6, 20, 64, 200]),
    )
    def test_does_not_depend_on_the_eps_that_were_asked_for(
        self,
        true: list[float],
        hidden: float,
        n_hidden: int,
        asked: list[float],
        more: float,
        planned: Planned,
    ) -> None:
        honest = torch.tensor(true)
        world = World(honest, torch.where(torch.arange(400) < n_hidden, hidden * honest, honest))
        names = [[f"{eps:g}/255" for eps in sorted(which)] for which in (asked, {*asked, more})]
        one, other = (deciding(of_world(planned, world, eps)) for eps in names)
        assert one == other

    def test_masking_below_the_largest_probed_eps_is_masked(self, planned: Planned) -> None:
        """The last survivors, at 32/255, are honestly robust; half of what PGD leaves at 16/255 is not."""
        true = radii((100, 40.0), (100, 4.0), (200, 4.0))
        apparent = radii((100, 40.0), (100, 20.0), (200, 4.0))
        evidence = of_world(planned, World(true, apparent))
        judged, because, _ = deciding(evidence)
        assert evidence.probed_eps[-1] in ("32/255", "24/255")
        assert judged is Verdict.masked
        assert set(because) >= {"D7", "D8", "D13"}

    def test_masking_above_the_eps_at_half_is_masked(self, planned: Planned) -> None:
        """The usual picture of a shelf: what PGD leaves at a large eps is not robust there."""
        true = radii((200, 3.0), (200, 5.0))
        apparent = radii((200, 3.0), (160, 5.0), (40, 60.0))
        judged, because, _ = deciding(of_world(planned, World(true, apparent)))
        assert judged is Verdict.masked
        assert set(because) >= {"D7", "D8", "D13"}

    def test_a_cliff_hides_nothing(self, planned: Planned) -> None:
        """PGD breaks nearly all samples at once, at 20/255; others break them at 5/255."""
        true = radii((80, 40.0), (320, 5.0))
        apparent = radii((80, 40.0), (320, 20.0))
        assert deciding(of_world(planned, World(true, apparent)))[0] is Verdict.masked

    @pytest.mark.parametrize("key", ["black_box_n", "label_n"])
    def test_of_too_few_attacked_samples_is_inconclusive(self, key: str, planned: Planned) -> None:
        evidence = of_world(planned, World(HONEST, HONEST), **{key: 5})
        judged, because, found = deciding(evidence)
        check = {"black_box_n": "D7", "label_n": "D13"}[key]
        assert (judged, because) == (Verdict.inconclusive, [check])
        assert (found[check].finds or 0) > 5
        assert f"audit.{key}=" in found[check].text

    def test_of_60_samples_is_inconclusive_unless_masked(self, planned: Planned) -> None:
        honest = HONEST[:60]
        judged, because, _ = deciding(of_world(planned, World(honest, honest)))
        assert (judged, set(because) <= {*DECIDING}) == (Verdict.inconclusive, True)
        assert deciding(of_world(planned, World(honest / 8, honest)))[0] is Verdict.masked

    def test_of_a_few_survivors_is_not_inconclusive(self, planned: Planned) -> None:
        """Of the 6 % that PGD leaves at 4/255, stronger attacks leave 3: too few to hide 5 points."""
        apparent = radii((188, 3.0), (12, 6.0))
        stronger = radii((194, 3.0), (6, 6.0))
        true = torch.minimum(apparent, stronger)
        world = World(true, apparent, stronger=stronger)
        assert deciding(of_world(planned, world))[0] is Verdict.not_masked

    def test_of_no_right_sample_is_inconclusive(self, planned: Planned) -> None:
        none = torch.zeros(100)
        judged, because, _ = deciding(of_world(planned, World(none, none)))
        assert (judged, because) == (Verdict.inconclusive, ["D0"])

    def test_of_samples_that_the_smallest_eps_breaks_is_not_masked(self, planned: Planned) -> None:
        tiny = torch.full((400,), 1e-4)
        assert deciding(of_world(planned, World(tiny, tiny)))[0] is not Verdict.masked


def test_d5_and_d13_attack_the_same_samples_by_labels(planned: Planned) -> None:
    """D13, which shares its level over several eps, needs more of them at 64/255 than D5 alone would."""
    apparent = some(*[3.0] * 9, *[90.0] * 11)
    true = torch.where((apparent > 3) & (torch.arange(400) % 3 == 0), 60.0, apparent)  # gone at 64
    others = [name for name in CHECKS if name not in ("D5", "D13")]
    both, alone = (
        {check.id: check for check in audit(of_world(planned, World(true, apparent)), skipped)}
        for skipped in (others, [*others, "D5"])
    )
    assert both["D5"].text.count("RayS") == 1
    assert both["D13"] == alone["D13"]
    assert (both["D13"].finds or 0) <= 5
