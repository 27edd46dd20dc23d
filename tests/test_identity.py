from __future__ import annotations

import copy
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import sstune
from sstune.composition import compose
from sstune.identity import identity, semantic
from sstune.schema import (
    COMMANDS,
    GROUPS,
    AdversaryConfig,
    RunConfig,
    Scale,
    Start,
    TrainedConfig,
    traits_of,
)
from sstune.schema.keys import Identity, default_of, key_of
from sstune.schema.run import sections as schema_sections

Complete = Callable[..., RunConfig]
ROOT = Path(sstune.__file__).parents[1]

# Where and how a run is computed. Anything else that a configuration says makes another run.
NOT_SEMANTIC = {
    "device",
    "threads",
    "out",
    "force",
    "init_from",  # counts as the parent's identity
    "dataset.root",  # counts as the data's fingerprint
    "dataset.cache",
    "dataset.download",
    "attack.surrogates",  # count as their identities
    "audit.surrogate",
    "audit.exact",
    "audit.strict",
    "model.factory",  # counts as the parent's identity
    "alignment",  # measures, and changes nothing
    "workers",
    "compile",
    "deterministic",
    "optimizer.fused",
}
# what has no effect in the company of the default values
INERT = {
    "optimizer.weight_decay_gamma",
    "dataset.subset_seed",
    "adversary.eps",
    "adversary.step_size",
}
INERT_OF_A_START = {*INERT, "rule.scale"}
TRAINING = {
    "optimizer", "schedule", "epochs", "batch_size", "accumulate", "clip_norm", "ema", "select", "patience",
    "precision",
}  # fmt: skip
ATTACKING = {"attack", "audit"}
UNUSED = {"train": ATTACKING, "finetune": ATTACKING, "attack": TRAINING}
# Keys that came after the first rows, and the values with which they leave a run's identity as it was.
LATER = {
    "select": "best", "accumulate": 1, "ema": None, "patience": None, "adversary.attack": None,
    "dataset.crop_scale": None, "dataset.transforms": {}, "dataset.cutout": 0, "dataset.train_n": None,
    "dataset.shots": None, "dataset.crop_pct": 1.0, "dataset.interpolation": "bilinear",
    "dataset.stream": False, "dataset.skip_corrupt": False, "optimizer.lr_factors": {},
    "optimizer.freeze": [], "attack.norm": "Linf", "attack.eot": 1, "attack.redraw": None,
    "attack.targeted": None,
    "attack.cascade": False, "attack.eight_bit": False, "attack.loss": "ce", "attack.early_exit": True,
    "attack.save_images": 0, "split.protocol": "cifar10-1", "split.queries": "test", "split.n_query": None,
    "split.n_train": None, "split.n_val": None, "split.seed": 0,
}  # fmt: skip


def another(value: Any, hint: Any) -> Any:
    """A value other than ``value`` that a field of this type may have."""
    kinds = [kind for kind in (*get_args(hint), hint) if isinstance(kind, type) and kind is not type(None)]
    if isinstance(value, StrEnum):
        return next(member for member in type(value) if member is not value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return f"{value}x"
    if isinstance(value, list):
        return [*value, "x"]
    if isinstance(value, dict):
        return {**value, "x": 1}
    assert value is None
    return next(iter(kinds[0])) if issubclass(kinds[0], StrEnum) else kinds[0](3)


def changes(config: RunConfig) -> Iterator[tuple[str, RunConfig]]:
    """Each field of a configuration, dotted, with the same configuration but for that field."""
    names = [*filter(None, schema_sections())]
    sections = [("", config), *((name, getattr(config, name)) for name in names)]
    for section, owner in sections:
        hints = get_type_hints(type(owner))
        for item in dataclasses.fields(owner):
            if item.name not in {*names, "command"}:
                changed = copy.deepcopy(config)
                target = getattr(changed, section) if section else changed
                setattr(target, item.name, another(getattr(target, item.name), hints[item.name]))
                yield f"{section}.{item.name}".lstrip("."), changed


def every_option() -> list[dict[str, str]]:
    """Choices that between them have every option of every group."""
    longest = max(len(options) for options in GROUPS.values())
    every = [{group: list(o)[i if i < len(o) else 0] for group, o in GROUPS.items()} for i in range(longest)]
    for chosen in every:
        if chosen["task"] not in (tasks := traits_of(chosen["attack"]).tasks or GROUPS["task"]):
            chosen["task"] = next(iter(tasks))
    return every


class TestIdentity:
    @pytest.mark.parametrize("command", COMMANDS)
    @pytest.mark.parametrize("options", every_option(), ids=lambda options: "-".join(options.values()))
    def test_each_field_counts_unless_it_is_listed(
        self, complete: Complete, command: str, options: dict[str, str]
    ) -> None:
        config = complete(command, **options)
        before = identity(config, "parent", "data")
        assert before == identity(copy.deepcopy(config), "parent", "data")
        for key, changed in changes(config):
            unused = NOT_SEMANTIC | (INERT_OF_A_START if hasattr(config.rule, "start") else INERT)
            in_batches = traits_of(config.attack.name).whole_batches or config.attack.name == "audit"
            if not in_batches:  # they draw for a sample
                unused = unused | {"attack.batch_size"}
            if config.attack.name != "audit":
                unused = unused | {f"audit.{item.name}" for item in dataclasses.fields(config.audit)}
            counts = key not in unused and key.split(".")[0] not in UNUSED[command]
            assert (identity(changed, "parent", "data") != before) == counts, key

    def test_the_lists_name_only_keys_that_exist(self, complete: Complete) -> None:
        keys = {key for options in every_option() for key, _ in changes(complete(**options))}
        assert keys >= NOT_SEMANTIC
        assert {key.split(".")[0] for key in keys} >= TRAINING

    def test_commands_differ(self, complete: Complete) -> None:
        assert len({identity(complete(command), None, None) for command in COMMANDS}) == len(COMMANDS)

    def test_parent_and_data_count(self, complete: Complete) -> None:
        pairs = [(None, None), ("a", None), ("b", None), (None, "a"), (None, "b"), ("a", "b")]
        assert len({identity(complete(), *pair) for pair in pairs}) == len(pairs)

    @pytest.mark.parametrize(
        ("name", "change", "counts"),
        [
            ("bp", {"scale": Scale.unit, "include": ["conv1"], "exclude": ["conv1"]}, False),
            ("sham", {"scale": Scale.unit}, False),
            ("sham", {"include": ["conv1"]}, True),
            ("usf", {"scale": Scale.unit}, True),
            ("fa", {"exclude": ["conv1"]}, True),
        ],
    )
    def test_what_a_rule_does_not_have_does_not_count(
        self, complete: Complete, name: str, change: dict[str, Any], counts: bool
    ) -> None:
        config = complete()
        config.rule.name = name
        changed = dataclasses.replace(config, rule=dataclasses.replace(config.rule, **change))
        assert (identity(config, None, None) != identity(changed, None, None)) == counts

    def test_the_scale_of_a_random_start_counts_only_for_one(self, complete: Complete) -> None:
        for start, counts in ((Start.weights, False), (Start.random, True)):
            config = complete(rule="kp")
            assert isinstance(config.rule, TrainedConfig)
            config.rule.start = start
            changed = copy.deepcopy(config)
            changed.rule.scale = Scale.unit
            assert (identity(config, None, None) != identity(changed, None, None)) == counts

    @pytest.mark.parametrize("command", COMMANDS)
    @pytest.mark.parametrize(
        ("attack", "counting"),
        [
            (None, set()),
            ("fgsm", {"eps"}),
            ("pgd7", {"eps", "step_size"}),
        ],
    )
    def test_what_an_adversary_does_not_use_does_not_count(
        self, complete: Complete, command: str, attack: str | None, counting: set[str]
    ) -> None:
        config = complete(command)
        config.adversary = AdversaryConfig(attack)
        before = identity(config, None, None)
        for key in ("eps", "step_size"):
            changed = dataclasses.replace(config, adversary=AdversaryConfig(attack, **{key: "2/255"}))
            assert (identity(changed, None, None) != before) == (key in counting), key

    def test_the_defaults_of_later_keys_never_change(self) -> None:
        found = {}
        for section, kinds in schema_sections().items():
            for item in (item for kind in kinds for item in dataclasses.fields(kind)):
                if key_of(item).identity is Identity.UNLESS_DEFAULT:
                    found[f"{section}.{item.name}".lstrip(".")] = default_of(item)
        assert {name: found[name] for name in LATER} == LATER

    @pytest.mark.parametrize(
        ("results", "experiment"),
        [
            ("quickstart", ["experiment=quickstart"]),
            ("cifar10-jpeg", ["experiment=cifar10_jpeg", "dataset.root=."]),
        ],
    )
    def test_rows_from_before_are_what_their_lines_compose_to(
        self, results: str, experiment: list[str]
    ) -> None:
        kinds = set()
        for line in (ROOT / "results" / results / "rows.jsonl").read_text().splitlines():
            row = json.loads(line)
            command, config = row["command"], row["config"]
            chosen = [*experiment, f"rule={config['rule']['name']}", f"seed={config['seed']}"]
            chosen += [f"rule.scale={config['rule']['scale']}"] if "scale" in config["rule"] else []
            chosen += [f"attack={config['attack']['name']}"] if command == "attack" else []
            assert semantic(compose(command, chosen)) == config
            kinds.add((command, config.get("attack", {}).get("name")))
        assert kinds == {("finetune", None), ("attack", "fgsm"), ("attack", "pgd")}

    def test_a_later_section_is_left_out_at_its_defaults(self, complete: Complete) -> None:
        config = complete("train")
        assert "split" not in semantic(config)
        config.split.seed = 3
        assert semantic(config)["split"] == {"seed": 3}

    def test_surrogates_count_by_what_they_are_and_not_by_where(self, complete: Complete) -> None:
        config = complete("attack")
        config.attack.surrogates = ["here"]
        moved = copy.deepcopy(config)
        moved.attack.surrogates = ["there"]
        named = [identity(config, "p", None, surrogates) for surrogates in ([], ["a"], ["b"], ["a", "b"])]
        assert len(set(named)) == 4
        assert identity(moved, "p", None, ["a"]) == named[1]
        assert identity(config, "p", None) == named[0]

    def test_the_order_of_fields_does_not_count(
        self, complete: Complete, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = complete()
        before = identity(config, None, None)
        values = semantic(config)
        reverse = {
            key: dict(reversed(value.items())) if isinstance(value, dict) else value
            for key, value in reversed(values.items())
        }
        assert list(reverse) != list(values)
        monkeypatch.setattr("sstune.identity.semantic", lambda config: reverse)
        assert identity(config, None, None) == before

    def test_is_the_same_in_every_process(self) -> None:
        program = "from sstune.composition import compose; from sstune.identity import identity; "
        program += "print(identity(compose('attack'), 'parent', None))"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        found = {
            subprocess.check_output(
                [sys.executable, "-c", program], env={**environment, "PYTHONHASHSEED": seed}, text=True
            )
            for seed in ("1", "2")
        }
        assert len(found) == 1
        assert len(found.pop().strip()) == 64
