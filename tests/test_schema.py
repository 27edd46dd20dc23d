from __future__ import annotations

import pytest

from sstune.composition import compose
from sstune.schema import (
    ATTACK_TRAITS,
    AscentConfig,
    Effort,
    Gradient,
    LibraryConfig,
    Traits,
    nearest,
    traits_of,
)


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("epoch", ["epochs", "seed"], "did you mean 'epochs'?"),
        ("zzz", ["b", "a"], "known: a, b"),
    ],
)
def test_nearest(name: str, known: list[str], hint: str) -> None:
    assert nearest(name, known) == hint


class TestTraits:
    @pytest.mark.parametrize("name", ATTACK_TRAITS)
    def test_agree_with_the_options_of_the_attack(self, name: str) -> None:
        config, traits = compose("attack", [f"attack={name}"]).attack, ATTACK_TRAITS[name]
        assert type(config) is traits.config
        assert (config.gradient == [Gradient.none]) is not traits.uses_gradient
        assert isinstance(config, LibraryConfig) is traits.whole_batches
        assert isinstance(config, AscentConfig) is traits.targeted
        counted = hasattr(config, "queries") or hasattr(config, "attempts")
        assert (traits.effort is Effort.queries) is counted

    def test_are_found_by_the_names_of_tables(self) -> None:
        assert traits_of("square L2") is traits_of("square") is ATTACK_TRAITS["square"]
        assert traits_of("of another version") == Traits(traits_of("x").config)
