"""Keys are declared completely, docs/configuration.md follows from them, and earlier names are accepted."""

from __future__ import annotations

import runpy
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

import sstune
from sstune import catalogue
from sstune.catalogue import CONF
from sstune.composition import Request, cells, compose, restore
from sstune.identity import identity, plain, semantic
from sstune.schema import (
    ATTACK_TRAITS,
    GROUPS,
    AscentConfig,
    Effort,
    Gradient,
    LibraryConfig,
    RequestError,
    Traits,
    nearest,
    traits_of,
)
from sstune.schema.aliases import ALIASES, renamed, under_first_names, under_present_names
from sstune.schema.keys import Range, default_of, key, key_of, keys_of, redefined
from sstune.schema.run import declared, sections
from sstune.validation import validate

ROOT = Path(sstune.__file__).parents[1]


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("epoch", ["epochs", "seed"], "did you mean 'epochs'?"),
        ("zzz", ["b", "a"], "known: a, b"),
        ("MNIST", ["mnist", "MN", "svhn"], "did you mean 'mnist'?"),
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
        assert isinstance(config, AscentConfig) is (traits.targeted or traits.tasks == ("hashing",))
        if traits.effort is not None:
            assert (traits.effort is Effort.steps) is traits.uses_gradient

    def test_are_found_by_the_names_of_tables(self) -> None:
        assert traits_of("square L2") is traits_of("square") is ATTACK_TRAITS["square"]
        assert traits_of("of another version") == Traits(traits_of("x").config)


class TestKeys:
    def test_every_key_has_a_help_text(self) -> None:
        for section, kinds in sections().items():
            for kind in kinds:
                for name, declaration in keys_of(kind).items():
                    assert declaration.help.endswith("."), f"{section}.{name} of {kind.__name__}"

    def test_a_key_counts_alike_in_all_classes_of_a_group(self) -> None:
        for kinds in sections().values():
            found: dict[str, set[Any]] = {}
            for kind in kinds:
                for name, declaration in keys_of(kind).items():
                    found.setdefault(name, set()).add((declaration.role, declaration.identity))
            assert [name for name, meanings in found.items() if len(meanings) > 1] == []

    def test_a_declaration_survives_omegaconf_and_inheritance(self) -> None:
        @dataclass
        class Base:
            widths: list[int] = key([3], "Widths.", within=Range(1, above=True))

        @dataclass
        class Derived(Base):
            widths: list[int] = redefined(Base, "widths", [5])

        (item,) = fields(Derived)
        assert key_of(item) == key_of(fields(Base)[0])
        assert default_of(item) == [5]
        config = OmegaConf.to_object(OmegaConf.structured(Derived))
        assert isinstance(config, Derived)
        assert key_of(fields(config)[0]).help == "Widths."
        assert Derived().widths is not Derived().widths

    def test_the_page_is_what_the_fields_give(self) -> None:
        script = runpy.run_path(str(ROOT / "scripts" / "configuration_page.py"))
        assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == script["page"]()

    def test_the_page_has_every_key(self) -> None:
        text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
        values = [name for name in declared() if name not in sections() and name != "command"]
        assert len(values) > 90
        assert [name for name in values if f"| `{name}`" not in text] == []

    @pytest.mark.parametrize("group", GROUPS)
    def test_an_option_states_only_what_differs_from_the_defaults(self, group: str) -> None:
        for path in sorted((CONF / group).glob("*.yaml")):
            stated = yaml.safe_load(path.read_text(encoding="utf-8"))
            schema = GROUPS[group][str(catalogue.option(group, path.stem).schema)]
            node = OmegaConf.structured(schema)
            for name in set(stated) - {"defaults", "name"}:
                merged = OmegaConf.merge(node, {name: stated[name]})
                if not OmegaConf.is_missing(merged, name):
                    assert OmegaConf.is_missing(node, name) or merged[name] != node[name], f"{path}: {name}"


# Each earlier name with a value, and a configuration that has the key.
VALUES = {
    "task.adversarial": "pgd3",
    "task.adversarial_eps": "3/255",
    "task.adversarial_step_size": "eps/2",
    "model.import": "package.module:factory",
}
AGAINST = ["task.adversarial=pgd7"]  # so that radius and step size count
OLD = {  # before there was adversary.*
    "adversarial": "pgd3",
    "adversarial_eps": "3/255",
    "adversarial_step_size": "eps/4",
}


class TestEarlierNames:
    def test_all_are_tried(self) -> None:
        assert set(VALUES) == set(ALIASES)
        assert set(ALIASES.values()) <= set(declared())
        assert not set(ALIASES) & set(declared())

    @pytest.mark.parametrize("old", ALIASES)
    def test_on_a_command_line(self, old: str) -> None:
        lines = [[*AGAINST, f"{name}={VALUES[old]}"] for name in (old, ALIASES[old])]
        earlier, now = (compose("attack", line) for line in lines)
        assert earlier == now != compose("attack", AGAINST)
        assert Request.of(earlier, lines[0]).explicit == Request.of(now, lines[1]).explicit >= {ALIASES[old]}
        (cell,) = cells("attack", [f"{old}={VALUES[old]}"])
        assert cell.overrides[0].startswith(f"{ALIASES[old]}=")
        assert cell.request.config == compose("attack", [f"{ALIASES[old]}={VALUES[old]}"])

    @pytest.mark.parametrize("old", ALIASES)
    def test_in_a_preset(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str) -> None:
        shutil.copytree(CONF, tmp_path / "conf")
        section, _, name = old.partition(".")
        text = yaml.safe_dump({section: {name: VALUES[old]}})
        (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}")
        monkeypatch.setattr(catalogue, "CONF", tmp_path / "conf")
        assert compose("attack", ["experiment=mine"]) == compose("attack", [f"{ALIASES[old]}={VALUES[old]}"])
        stronger = f"{ALIASES[old]}={VALUES[old]}0"  # the command line's value
        assert compose("attack", ["experiment=mine", stronger]) == compose("attack", [stronger])

    @pytest.mark.parametrize("key", ["task.adversary", "model.imports"])
    def test_others_are_refused_in_a_preset(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
    ) -> None:
        shutil.copytree(CONF, tmp_path / "conf")
        section, _, name = key.partition(".")
        (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(
            f"# @package _global_\n{section}: {{{name}: x}}\n"
        )
        monkeypatch.setattr(catalogue, "CONF", tmp_path / "conf")
        with pytest.raises(RequestError, match=f"^{key}: no such key"):
            compose("train", ["experiment=mine"])

    def test_in_a_stored_configuration(self) -> None:
        saved = plain(asdict(compose("attack")), names=True)
        del saved["adversary"]
        saved["task"] |= OLD
        saved["model"] = {"import": "a:b"}
        line = ["adversary.attack=pgd3", "adversary.eps=3/255", "model.factory=a:b"]
        assert restore(saved) == compose("attack", line)

    @pytest.mark.parametrize(
        ("attack", "stored"),
        [
            ("null", {}),
            ("fgsm", {"adversarial": "fgsm", "adversarial_eps": "3/255"}),
            ("pgd3", OLD),
        ],
    )
    def test_rows_and_identities_keep_them(self, attack: str, stored: dict[str, str]) -> None:
        config = compose("finetune", [f"adversary.attack={attack}", "adversary.eps=3/255"])
        values = semantic(config)
        assert values["task"] == {"name": "classification", "label_smoothing": 0.0, **stored}
        assert not {"adversary", "model"} & set(values)
        other = compose("finetune", [f"task.adversarial={attack}", "task.adversarial_eps=3/255"])
        assert identity(config, None, None) == identity(other, None, None)

    def test_both_ways_give_the_values_again(self) -> None:
        values = {"task": {"name": "t"}, "adversary": {"attack": "fgsm", "eps": "1"}, "seed": 1}
        assert under_first_names(values)["task"] == {
            "name": "t",
            "adversarial": "fgsm",
            "adversarial_eps": "1",
        }
        assert under_present_names(under_first_names(values)) == values

    @pytest.mark.parametrize("override", ["epochs=3", "task=classification", "task.adversarial_x=1", "x"])
    def test_other_overrides_stay(self, override: str) -> None:
        assert renamed(override) == override

    def test_of_hydras_own_answers(self, ask: Callable[..., Any]) -> None:
        answer = ask("train", "task.adversarial=pgd3", "--cfg", "job")
        assert answer.status == 0
        shown = yaml.safe_load(answer.out)
        assert shown["adversary"]["attack"] == "pgd3"
        assert "adversarial" not in shown["task"]

    @pytest.mark.parametrize("whole", [True, False])
    def test_a_task_asked_for_starts_without_the_parents_adversary(self, whole: bool) -> None:
        line = ["task=classification"] if whole else ["task.label_smoothing=0.1"]
        config = compose("finetune", line)
        validate(config)
        assert ("adversary" in Request.of(config, line).explicit) == whole
