from __future__ import annotations

import pytest

from sstune.registry import Registry
from sstune.schema import RequestError


@pytest.fixture
def registry() -> Registry[type]:
    registry: Registry[type] = Registry("rule.name")
    registry.register("usf")(int)
    registry.register("frsf", "brsf")(str)
    return registry


def test_finds_what_was_registered_under_each_name(registry: Registry[type]) -> None:
    assert [registry[name] for name in ("usf", "frsf", "brsf")] == [int, str, str]
    assert list(registry) == ["usf", "frsf", "brsf"]
    assert "usf" in registry
    assert "fa" not in registry
    assert 3 not in registry


def test_decorating_returns_the_decorated_thing(registry: Registry[type]) -> None:
    @registry.register("fa")
    class Alignment:
        pass

    assert registry["fa"] is Alignment


@pytest.mark.parametrize("names", [("usf",), ("fa", "brsf"), ("fa", "fa")])
def test_a_name_that_is_taken_is_refused(names: tuple[str, ...], registry: Registry[type]) -> None:
    taken = names[-1]
    with pytest.raises(ValueError, match=f"rule.name: {taken!r} is registered twice"):
        registry.register(*names)(float)
    assert registry["usf"] is int
    assert registry["brsf"] is str


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("ufs", "did you mean 'usf'?"),
        ("brs", "did you mean 'brsf'?"),
        ("USF", "did you mean 'usf'?"),
        ("", "known: brsf, frsf, usf"),
        ("weight_mirror", "known: brsf, frsf, usf"),
    ],
)
def test_an_unknown_name_is_a_request_error_with_the_nearest_one(
    name: str, hint: str, registry: Registry[type]
) -> None:
    with pytest.raises(RequestError) as caught:
        registry[name]
    assert str(caught.value) == f"rule.name: unknown {name!r}, {hint}"


def test_registries_share_nothing(registry: Registry[type]) -> None:
    other: Registry[type] = Registry("task.name")
    other.register("usf")(float)
    assert registry["usf"] is int
    assert list(other) == ["usf"]
