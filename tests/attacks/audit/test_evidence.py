"""At which eps the audit looks: those asked for, and others where these tell nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sstune.attacks.audit import Evidence
from sstune.attacks.audit.evidence import SMALLEST
from sstune.quantities import parse_eps

Planned = Callable[..., Evidence]


@pytest.mark.parametrize(
    ("left", "asked", "telling"),
    [
        ({"4/255": 80, "8/255": 30}, ["4/255", "8/255"], ["4/255", "8/255"]),
        ({"8/255": 23}, ["8/255"], ["8/255"]),  # a quarter of 90 is 22.5
        ({"8/255": 67}, ["8/255"], ["8/255"]),
        ({"8/255": 68, "16/255": 67}, ["8/255"], ["8/255", "16/255"]),
        ({"24/255": 90, "48/255": 80, "64/255": 70}, ["24/255"], ["24/255", "48/255", "64/255"]),
        ({"0.3": 90}, ["0.3"], ["0.3"]),  # 76.5/255
        ({"0": 90, "1/255": 30}, ["0"], ["0", "1/255"]),
        ({"0": 90, "1/255": 20, "0.5/255": 40}, ["0"], ["0", "0.5/255", "1/255"]),
        ({"8/255": 22, "4/255": 23}, ["8/255"], ["4/255", "8/255"]),
        ({"2/255": 0, "1/255": 10, "0.5/255": 60}, ["2/255"], ["0.5/255", "1/255", "2/255"]),
        ({"0.05": 0, "6.375/255": 5, "3.1875/255": 30}, ["0.05"], ["3.1875/255", "6.375/255", "0.05"]),
        ({"1/255": 90, "96/255": 0, "48/255": 30}, ["1/255", "96/255"], ["1/255", "48/255", "96/255"]),
        ({"2/255": 90, "4/255": 0, "3/255": 50}, ["2/255", "4/255"], ["2/255", "3/255", "4/255"]),
        ({"2/255": 0, "4/255": 90}, ["2/255", "4/255"], ["2/255", "4/255"]),  # no sense in looking between
    ],
)  # fmt: skip
def test_asks_for_what_it_takes_to_tell(
    left: dict[str, int], asked: list[str], telling: list[str], planned: Planned
) -> None:
    """What is not in ``left`` must not be attacked."""
    evidence = planned({f"pgd rule {eps}": k for eps, k in left.items()}, 100, asked, clean=90)
    assert evidence.informative_eps == telling


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    k=st.integers(0, 90),
    asked=st.lists(st.integers(0, 4 * 255), min_size=1, max_size=4, unique=True).map(sorted),
)
def test_ends_and_keeps_what_was_asked_for(k: int, asked: list[int], planned: Planned) -> None:
    """Even if an attack leaves as many at any eps."""

    class Always(dict[str, int]):
        def __missing__(self, key: str) -> int:
            return k

    names = [f"{number / 4:g}/255" for number in asked]
    telling = planned(Always(), 100, names, clean=90).informative_eps
    radii = [parse_eps(eps) for eps in telling]
    assert radii == sorted(set(radii))
    assert set(names) <= set(telling)
    assert radii[0] == parse_eps(names[0]) or radii[0] >= SMALLEST / 2
    assert radii[-1] <= max(64 / 255, parse_eps(names[-1]))
