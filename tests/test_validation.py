from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import astuple, fields
from typing import Any, get_args

import pytest

from sstune import validation
from sstune.mistakes import types
from sstune.schema import (
    GROUPS,
    AdamWConfig,
    Compile,
    Draws,
    Gradient,
    Norm,
    Redraw,
    RequestError,
    RunConfig,
    Target,
    traits_of,
)
from sstune.schema.keys import Range, keys_of
from sstune.schema.run import declared, sections
from sstune.validation import validate

Complete = Callable[..., RunConfig]
RANGES = {name: key.within for name, key in declared().items() if key.within != Range()}


def put(config: RunConfig, key: str, value: Any) -> RunConfig:
    section, _, name = key.rpartition(".")
    owner = getattr(config, section) if section else config
    assert hasattr(owner, name), key
    setattr(owner, name, value)
    return config


def option_with(key: str) -> dict[str, str]:
    """The first option of a key's group that has it, with its task, as arguments of ``complete``."""
    group, _, name = key.rpartition(".")
    options = GROUPS.get(group, {})
    option = next((o for o, kind in options.items() if name in {f.name for f in fields(kind)}), None)
    if option is None:
        return {}
    tasks = traits_of(option).tasks if group == "attack" else None
    return {group: option} | ({} if tasks is None else {"task": tasks[0]})


class TestValidate:
    def test_reports_everything_at_once(self, complete: Complete) -> None:
        config = complete("train")
        for key, value in {
            "epochs": 0,
            "optimizer.lr": -1.0,
            "attack.eps": ["x", "8/255", "2"],
            "device": "gpu",
            "init_from": "no/where",
        }.items():
            put(config, key, value)
        with pytest.raises(RequestError) as caught:
            validate(config)
        keys = [line.split(":")[0] for line in str(caught.value).splitlines()]
        expected = ["epochs", "optimizer.lr", "init_from", "init_from", "device", "attack.eps", "attack.eps"]
        assert sorted(keys) == sorted(expected)

    @pytest.mark.parametrize(
        ("options", "key", "value", "problem"),
        [
            ({}, "device", "cuda:x", "device: 'cuda:x' is none of auto, cpu, cuda, cuda:0"),
            ({}, "init_from", "x", "init_from: x does not exist (a run directory or a checkpoint file)"),
            ({}, "dataset.std", [0.5, 0.5], "dataset.std: needs as many values as dataset.mean"),
            ({}, "dataset.std", [0.0], "dataset.std: 0 is out of range, expected > 0 and <= 1000"),
            ({}, "attack.eps", [], "attack.eps: needs at least one value"),
            ({}, "attack.eps", ["2"], "attack.eps: '2' is outside [0, 1]"),
            ({}, "attack.gradient", [], "attack.gradient: needs rule, exact or both, or surrogate"),
            (
                {"attack": "pgd"},
                "attack.step_size",
                "eps/x",
                "attack.step_size: 'eps/x' is none of 2/255, eps/4, 2.5*eps/10",
            ),
            (
                {"dataset": "folder"},
                "dataset.root",
                "no/where",
                "dataset.root: no/where does not exist (a directory or a .tar[.xz|.gz])",
            ),
            (
                {},
                "adversary.attack",
                "pdg7",
                "adversary.attack: 'pdg7' is none of fgsm, pgd7, pgd10 (pgd and the number of steps)",
            ),
            ({}, "adversary.eps", "2", "adversary.eps: '2' is outside [0, 1]"),
            (
                {},
                "adversary.step_size",
                "eps//4",
                "adversary.step_size: 'eps//4' is none of 2/255, eps/4, 2.5*eps/10",
            ),
            ({}, "seed", -1, "seed: -1 is out of range, expected >= 0"),
            ({}, "seed", 2**32, "seed: 4294967296 is out of range, expected >= 0 and <= 4294967295"),
            (
                {},
                "dataset.val_fraction",
                0.95,
                "dataset.val_fraction: 0.95 is out of range, expected > 0 and <= 0.9",
            ),
            (
                {},
                "optimizer.momentum",
                0.0,
                "optimizer.nesterov: needs optimizer.momentum > 0, or set optimizer.nesterov=false",
            ),
            (
                {"rule": "pfa"},
                "optimizer",
                AdamWConfig(name="adamw", lr=0.1),
                "rule.closed_form: is exact under sgd only; must be false with adamw",
            ),
            (
                {"rule": "pfa"},
                "rule.density",
                0.5,
                "rule.closed_form: must be false where rule.density is below 1",
            ),
            (
                {},
                "optimizer.weight_decay_milestones",
                [3, 2],
                "optimizer.weight_decay_milestones: [3, 2] must be epochs in ascending order",
            ),
            (
                {"backbone": "mlp"},
                "backbone.hidden",
                [0],
                "backbone.hidden: 0 is out of range, expected >= 1",
            ),
            (
                {"optimizer": "adamw"},
                "optimizer.betas",
                [0.9],
                "optimizer.betas: [0.9] must be two values >= 0 and < 1",
            ),
            (
                {"optimizer": "adamw"},
                "optimizer.betas",
                [0.9, 1.0],
                "optimizer.betas: 1 is out of range, expected >= 0 and <= 0.999999999",
            ),
        ],
    )
    def test_table(
        self, complete: Complete, options: dict[str, str], key: str, value: Any, problem: str
    ) -> None:
        config = put(complete(**options), key, value)
        assert list(validation.problems(config)) == [problem]

    @pytest.mark.parametrize(
        ("options", "changed", "expected"),
        [
            ({}, {"attack.gradient": ["none"]}, ["attack.gradient: needs rule, exact or both, or surrogate"]),
            ({}, {"attack.gradient": ["rule", "rule"]}, ["attack.gradient: rule is given twice"]),
            ({}, {"attack.eps": ["8/255", "0", "8/255"]}, ["attack.eps: 8/255 is given twice"]),
            (
                {},
                {"attack.gradient": ["surrogate"]},
                ["attack.surrogates: must be given with attack.gradient=[surrogate], and only then"],
            ),
            (
                {},
                {"attack.surrogates": ["."]},
                ["attack.surrogates: must be given with attack.gradient=[surrogate], and only then"],
            ),
            ({}, {"attack.gradient": ["exact", "surrogate"], "attack.surrogates": [".", ".."]}, []),
            (
                {},
                {"attack.gradient": ["surrogate"], "attack.surrogates": ["no/where", "."]},
                [
                    "attack.surrogates: no/where does not exist (a run directory, a checkpoint file, or "
                    "package.module:factory)"
                ],
            ),
            (
                {"attack": "audit"},
                {"audit.surrogate": "no/where"},
                [
                    "audit.surrogate: no/where does not exist (a run directory, a checkpoint file, or "
                    "package.module:factory)"
                ],
            ),
            ({"attack": "audit"}, {"audit.skip": ["D8", "D0"]}, []),
            (
                {"attack": "audit"},
                {"audit.skip": ["D8", "D99"]},
                ["audit.skip: unknown check 'D99', did you mean 'D9'?"],
            ),
            (
                {"attack": "square"},
                {"attack.gradient": ["exact"]},
                ["attack.gradient: square uses no gradient, remove this key"],
            ),
            (
                {"attack": "apgd"},
                {"attack.gradient": ["surrogate"], "attack.surrogates": ["."]},
                [],
            ),
            (
                {"attack": "square"},
                {"attack.gradient": ["surrogate"], "attack.surrogates": ["."]},
                ["attack.gradient: square uses no gradient, remove this key"],
            ),
            (
                {"attack": "audit"},
                {"attack.gradient": ["surrogate"], "attack.surrogates": ["."]},
                ["attack.gradient: the audit chooses its attacks itself; remove this key"],
            ),
            (
                {"attack": "apgd"},
                {"attack.targeted": Target.random},
                ["attack.targeted: is for fgsm, mifgsm, pgd and finite_difference, not for apgd"],
            ),
            ({"attack": "mifgsm"}, {"attack.targeted": Target.random, "attack.eot": 4}, []),
            ({"attack": "apgd"}, {"attack.eot": 4}, []),
            (
                {"attack": "pgd", "rule": "brsf"},
                {"attack.eot": 2},
                ["attack.eot: averages gradients of different draws, so brsf needs attack.redraw=forward"],
            ),
            (
                {"attack": "pgd", "rule": "brsf"},
                {"attack.eot": 2, "attack.redraw": Draws.step, "rule.redraw": Redraw.forward},
                ["attack.eot: averages gradients of different draws, so brsf needs attack.redraw=forward"],
            ),
            ({"attack": "pgd", "rule": "brsf"}, {"attack.eot": 2, "rule.redraw": Redraw.forward}, []),
            ({"attack": "pgd", "rule": "brsf"}, {"attack.eot": 2, "attack.redraw": Draws.forward}, []),
            (
                {"attack": "rays"},
                {"attack.eot": 2},
                [
                    "attack.eot: is for fgsm, mifgsm, pgd, finite_difference, mainstay, hag, hag_sign, sdha, "
                    "apgd, apgd_t and audit, not for rays"
                ],
            ),
            ({"attack": "rays"}, {"attack.norm": Norm.L2}, ["attack.norm: rays supports Linf only"]),
            (
                {"attack": "square"},
                {"attack.batch_size": None},
                ["attack.batch_size: square draws random numbers per batch, so their size must be given"],
            ),
            ({"attack": "pgd"}, {"attack.batch_size": None}, []),
            # in L2 a radius may be larger than the distance of black and white
            ({"attack": "pgd"}, {"attack.norm": Norm.L2, "attack.eps": ["3"], "attack.step_size": "2"}, []),
            ({"attack": "pgd"}, {"attack.step_size": "2"}, ["attack.step_size: '2' is outside [0, 1]"]),
            (
                {},
                {"attack.norm": Norm.L2, "attack.eps": ["-1"]},
                ["attack.eps: '-1' is outside [0, 1e+06]"],
            ),
            ({}, {"model.factory": "a:b"}, []),
            ({}, {"model.factory": "a:b", "init_from": "."}, [
                "model.factory: has its own weights, remove init_from",
            ]),
        ],
    )  # fmt: skip
    def test_of_an_attack(
        self, complete: Complete, options: dict[str, str], changed: dict[str, Any], expected: list[str]
    ) -> None:
        config = complete("attack", **options)
        for key, value in changed.items():
            put(config, key, [Gradient(each) for each in value] if key == "attack.gradient" else value)
        assert list(validation.problems(config)) == expected

    @pytest.mark.parametrize(
        ("attack", "tasks"),
        [("square", "classification"), ("audit", "classification and hashing"), ("pgd", None)],
    )
    def test_an_attack_that_is_not_for_the_task(
        self, complete: Complete, attack: str, tasks: str | None
    ) -> None:
        config = complete("attack", attack=attack)
        config.task.name = "retrieval"
        line = f"attack: {attack} supports {tasks}, not task=retrieval"
        assert (line in validation.problems(config)) is (tasks is not None)

    @pytest.mark.parametrize("command", ["train", "finetune"])
    def test_only_an_attack_imports_a_network(self, complete: Complete, command: str) -> None:
        config = complete(command)
        config.model.factory = "a:b"
        expected = f"model.factory: is for sstune attack, {command} builds its own network"
        assert list(validation.problems(config)) == [expected]

    @pytest.mark.parametrize("mode", list(Compile))
    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_cuda_graphs_do_not_add_up_gradients(
        self, complete: Complete, mode: Compile, accumulate: int
    ) -> None:
        config = complete("train", accumulate=accumulate)
        config.compile = mode
        expected = [
            f"compile: {mode.name} uses CUDA graphs, which overwrite the gradients of previous parts "
            f"(accumulate=2); use compile=default"
        ]
        refused = mode is not Compile.default and accumulate > 1
        assert list(validation.problems(config)) == (expected if refused else [])

    @pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1"])
    def test_devices(self, complete: Complete, device: str) -> None:
        assert list(validation.problems(complete(device=device))) == []


class TestNames:
    """A configuration made in Python is held to what conf/ says, too."""

    @pytest.mark.parametrize("group", GROUPS)
    @pytest.mark.parametrize("name", ["", "nonsense", "/../../x"])
    def test_one_that_no_option_has_is_refused(self, complete: Complete, group: str, name: str) -> None:
        config = put(complete(), f"{group}.name", name)
        assert any(line.startswith(f"{group}.name: ") for line in validation.problems(config))

    @pytest.mark.parametrize(
        ("key", "name", "problem"),
        [
            ("optimizer.name", "adamw", "optimizer.name: a SgdConfig cannot be 'adamw', known: sgd"),
            (
                "schedule.name",
                "cosine",
                "schedule.name: a ScheduleConfig cannot be 'cosine', known: constant",
            ),
            ("rule.name", "brsf", "rule.name: a RuleConfig cannot be 'brsf', did you mean 'frsf'?"),
        ],
    )
    def test_one_of_another_kind_is_refused(
        self, complete: Complete, key: str, name: str, problem: str
    ) -> None:
        assert list(validation.problems(put(complete(), key, name))) == [problem]

    @pytest.mark.parametrize("name", ["convnext_atto", "resnet18.a1_in1k", "resnet18"])
    def test_timm_has_names_of_its_own(self, complete: Complete, name: str) -> None:
        assert list(validation.problems(put(complete(backbone="timm"), "backbone.name", name))) == []

    @pytest.mark.parametrize("name", ["../x", "/x", "a/b", "..", ".x", "hf-hub:a/b", "a b", "x" * 200])
    def test_but_none_that_leads_elsewhere(self, complete: Complete, name: str) -> None:
        (line,) = validation.problems(put(complete(backbone="timm"), "backbone.name", name))
        assert line.startswith("backbone.name: ")


class TestRanges:
    def test_every_number_has_a_range(self) -> None:
        numbers = {
            key
            for key, hint in types().items()
            if {int, float} & {hint, *get_args(hint)}  # also of a list or of a mapping
        }
        assert numbers == set(RANGES)

    def test_a_key_has_one_range_in_all_classes_of_a_group(self) -> None:
        for kinds in sections().values():
            found: dict[str, set[Range]] = {}
            for kind in kinds:
                for name, key in keys_of(kind).items():
                    found.setdefault(name, set()).add(key.within)
            assert all(len(ranges) == 1 for ranges in found.values())

    @pytest.mark.parametrize("key", RANGES)
    def test_bounds(self, complete: Complete, key: str) -> None:
        low, high, open_below = astuple(RANGES[key])
        config = complete(**option_with(key))
        held = getattr(getattr(config, key.partition(".")[0]), key.partition(".")[2], None)

        def problems(value: float) -> list[str]:
            several: Any = {list: [value], dict: {"*": value}}.get(type(held), value)
            lines = validation.problems(put(config, key, several))
            return [line for line in lines if line.startswith(f"{key}: {value:.10g} is out of range")]

        assert (problems(low) != []) == open_below
        assert problems(low - 1) != []
        assert problems(math.nextafter(low, math.inf)) == []
        for value in (math.nan, math.inf, -math.inf):
            assert problems(value) == [f"{key}: {value} is out of range, expected a finite number"]
        if high < math.inf:
            assert problems(high) == []
            assert problems(high + 1) != []
            assert problems(math.nextafter(high, math.inf)) != []
        (line,) = problems(low - 1)
        assert line.startswith(f"{key}: {low - 1:g} is out of range, expected >")

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_a_number_that_no_range_is_of_is_finite(self, complete: Complete, value: float) -> None:
        config = complete()
        config.dataset.transforms = {"GaussianNoise": {"sigma": [0.1, value]}}
        expected = f"dataset.transforms: {value} is out of range, expected a finite number"
        assert list(validation.problems(config)) == [expected]

    def test_an_integer_beyond_any_float(self, complete: Complete) -> None:
        (line,) = validation.problems(put(complete(), "epochs", 10**400))
        assert line.startswith("epochs: a number of some 400 digits is out of range")
