from __future__ import annotations

import functools
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml
from omegaconf import OmegaConf

from sstune import catalogue, schema
from sstune.catalogue import CONF, options
from sstune.composition import Request, cells, compose, restore
from sstune.identity import plain
from sstune.mistakes import known_keys
from sstune.runs import Run
from sstune.schema import COMMANDS, GROUPS, RequestError, RunConfig
from sstune.validation import problems, validate

Complete = Callable[..., RunConfig]

composed = functools.cache(lambda command, *overrides: compose(command, overrides))  # 0.1 s each

# What an option needs besides its name; the folder need only exist.
NEEDS = {
    "dataset=folder": ["dataset.root=.", "dataset.label=d"],
    "dataset=list": ["dataset.root=.", "dataset.label=d"],
    "dataset=imagenet": ["dataset.root=."],
    "dataset=tiny_imagenet": ["dataset.root=."],
    "backbone=timm": ["backbone.name=convnext_atto"],
    "attack=transfer": ["attack.surrogates=[.]"],
    "attack=mainstay": ["task=hashing"],
    "attack=hag": ["task=hashing"],
    "attack=hag_sign": ["task=hashing"],
    "attack=sdha": ["task=hashing"],
}
EXPERIMENTS = {
    "none": [],
    "quickstart": ["experiment=quickstart"],
    "cifar10_jpeg": ["experiment=cifar10_jpeg", "dataset.root=."],
    "adversarial_cifar10_jpeg": ["experiment=adversarial_cifar10_jpeg", "dataset.root=."],
    "audit_cifar10_jpeg": ["experiment=audit_cifar10_jpeg", "dataset.root=."],
    "mnist_mlp": ["experiment=mnist_mlp"],
    "imagenet_biotorch": ["experiment=imagenet_biotorch", "dataset.root=."],
    "imagenet_xiao": ["experiment=imagenet_xiao", "dataset.root=."],
    "tiny_imagenet_32": ["experiment=tiny_imagenet_32", "dataset.root=."],
    "transfer_cifar10_jpeg": ["experiment=transfer_cifar10_jpeg", "dataset.root=."],
    "hashing_authors": ["experiment=hashing_authors"],
    "hashing_authors_cifar10_jpeg": ["experiment=hashing_authors_cifar10_jpeg", "dataset.root=."],
    "hashing_cifar10_jpeg": ["experiment=hashing_cifar10_jpeg", "dataset.root=."],
    "mnist_mlp_trained": ["experiment=mnist_mlp_trained", "rule=pfa"],
}


def _rounds() -> list[list[str]]:
    """Overrides that between them choose every option of every group, one of each group at a time."""
    groups = [group for group in GROUPS if group != "task"]  # an attack needs its own
    columns = [[f"{group}={option}" for option in options(group)] for group in groups]
    rounds = [[choice for choice in chosen if choice] for chosen in zip_longest(*columns)]
    return [[part for choice in chosen for part in [choice, *NEEDS.get(choice, [])]] for chosen in rounds]


class TestOptions:
    def test_every_experiment_is_in_the_tables_below(self) -> None:
        assert sorted(EXPERIMENTS) == sorted(["none", *options("experiment")])

    def test_every_schema_option_is_used_and_every_group_has_a_folder(self) -> None:
        folders = {path.name for path in CONF.iterdir() if path.is_dir()} - {"local"}
        assert folders == {*GROUPS, "experiment"}
        for group, kinds in GROUPS.items():
            texts = [(CONF / group / f"{option}.yaml").read_text() for option in options(group)]
            named = {line.split()[-1] for text in texts for line in text.splitlines() if "schema/" in line}
            assert named == set(kinds)

    @pytest.mark.parametrize("command", COMMANDS)
    @pytest.mark.parametrize("chosen", _rounds(), ids=" ".join)
    def test_every_option_composes_validates_and_is_restored(
        self, command: str, chosen: list[str], tmp_path: Path
    ) -> None:
        config = compose(command, chosen)
        validate(config)
        assert isinstance(config, COMMANDS[command])
        assert config.command == command
        for choice in chosen:
            key, value = choice.split("=", 1)
            if key in GROUPS:
                named = {"timm": "convnext_atto", "transfer": "mifgsm"}.get(value, value)
                assert getattr(config, key).name == named
                (line,) = re.findall(r"/schema/.*", (CONF / key / f"{value}.yaml").read_text())
                assert type(getattr(config, key)) is GROUPS[key][line.split()[-1]]
        run = Run(replace(config, out=str(tmp_path)), [], None)
        run.directory.mkdir(parents=True)
        run.begin()
        saved = yaml.safe_load((run.directory / "config.yaml").read_text())
        assert restore(saved) == run.config

    def test_options_agree_on_what_a_field_means(self) -> None:
        """A key that two options of a group share has one type: the nearest-spelling hints rely on it."""
        for group, kinds in GROUPS.items():
            types: dict[str, set[str]] = {}
            for kind in kinds.values():
                for item in fields(kind):
                    types.setdefault(item.name, set()).add(str(item.type))
            assert {name: kinds for name, kinds in types.items() if len(kinds) > 1} == {}, group


class TestDefaults:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_valid_and_on_the_embedded_data(self, command: str) -> None:
        config = composed(command)
        assert list(problems(config)) == []
        assert config.dataset.name == "digits"
        assert config.init_from is None

    @pytest.mark.parametrize("experiment", EXPERIMENTS)
    def test_finetune_and_attack_share_one_recipe(self, experiment: str) -> None:
        chosen = EXPERIMENTS[experiment]
        finetune, attack = composed("finetune", *chosen), composed("attack", *chosen)
        for item in fields(RunConfig):
            if item.name != "command":
                assert getattr(finetune, item.name) == getattr(attack, item.name), item.name

    @pytest.mark.parametrize("command", COMMANDS)
    def test_precedence_primary_experiment_command_line(self, command: str) -> None:
        chosen = EXPERIMENTS["cifar10_jpeg"]
        default = composed(command)
        preset = composed(command, *chosen)
        assert (default.epochs, default.out) != (preset.epochs, preset.out)
        assert (preset.epochs, preset.batch_size, preset.optimizer.lr) == (1, 128, 0.02)
        assert preset.schedule.warmup_epochs == 0.3
        assert preset.dataset.crop_padding == 0
        last = compose(command, ["epochs=7", "optimizer.lr=0.5", *chosen, "dataset.crop_padding=3"])
        assert (last.epochs, last.batch_size, last.optimizer.lr) == (7, 128, 0.5)
        assert last.dataset.crop_padding == 3


def by_hydra(command: str, overrides: list[str]) -> dict[str, Any]:
    """What Hydra itself makes of all the overrides together, as plain values."""
    schema.register()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        typed = OmegaConf.to_object(hydra.compose(command, overrides))
    return asdict(typed)  # type: ignore[call-overload, no-any-return]


LINES = [
    [],
    ["epochs=3", "optimizer.lr=1e-3", "seed=7"],
    ["optimizer.lr=0.2", "optimizer=adamw", "optimizer.betas=[0.5,0.6]"],  # the group's choice comes first
    ["rule=usf", "rule.scale=unit", "rule.redraw=forward", "rule=brsf"],
    ["experiment=cifar10_jpeg", "dataset.root=.", "batch_size=3", "attack.eps=[1/255]"],
    ["out='a b/c=d'", 'dataset.label="x,y"', "rule.include=['layer1.*',head]", "rule.exclude=[]"],
    ["clip_norm=null", "threads=2", "threads=null", "ema=0.9"],
    ["epochs=1", "epochs=2", "attack=fgsm", "attack.n=5", "attack.n=null"],
    ["optimizer.lr_factors={head:10,layer1.*:0.1}", "optimizer.freeze=[stem]"],
    ["optimizer.lr_factors={head:10}", "optimizer.lr_factors.stem=0.5"],
    ["dataset=cifar10", "dataset.transforms={RandAugment:{num_ops:2,magnitude:5}}", "dataset.flip=true"],
    ["backbone=mlp", "backbone.hidden=[]", "dataset.mean=[0.1]", "dataset.flip=yes"],
    ["batch_size=${epochs}", "epochs=5", "alignment=off"],
    ["schedule=multistep", "schedule.milestones=[1,2]", "compile=reduce_overhead", "precision=bf16"],
    ["init_from=a/b,c.pt".replace(",", "\\,")],
]


class TestComposing:
    @pytest.mark.parametrize("command", COMMANDS)
    @pytest.mark.parametrize("overrides", LINES, ids=" ".join)
    def test_gives_what_hydra_gives(self, command: str, overrides: list[str]) -> None:
        assert asdict(compose(command, overrides)) == by_hydra(command, overrides)

    def test_what_one_line_sets_or_changes_is_in_no_other(self) -> None:
        plain = compose("train")
        before = asdict(plain)
        for overrides in LINES:
            changed = compose("train", overrides)
            changed.rule.include.append("changed")
            changed.optimizer.lr_factors["changed"] = 1.0
            changed.dataset.transforms["changed"] = None
            changed.dataset.mean.append(9.0)
            changed.epochs = 99
        assert asdict(compose("train")) == before == asdict(plain)

    @pytest.mark.parametrize("overrides", [["epoch=3"], ["optimizer.lr=x"], ["rule=usb"]])
    def test_a_wrong_line_spoils_no_later_one(self, overrides: list[str]) -> None:
        for _ in range(2):
            with pytest.raises(RequestError):
                compose("train", ["epochs=3", *overrides])
        assert compose("train").epochs == 20

    def test_a_preset_may_name_factors(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        shutil.copytree(CONF, tmp_path / "conf")
        (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(
            "# @package _global_\noptimizer:\n  lr_factors: {stem: 0.5}\n"
        )
        monkeypatch.setattr(catalogue, "CONF", tmp_path / "conf")
        config = compose("train", ["experiment=mine", "optimizer.lr_factors={head:10}"])
        assert config.optimizer.lr_factors == {"stem": 0.5, "head": 10.0}


class TestRestore:
    @pytest.mark.parametrize("asked_for", ["compile=reduce_overhead", "attack.norm=L2"])
    def test_choices_whose_names_are_not_their_values(self, asked_for: str, tmp_path: Path) -> None:
        run = Run(replace(composed("attack", asked_for), out=str(tmp_path)), [], None)
        run.directory.mkdir(parents=True)
        run.begin()
        assert restore(yaml.safe_load((run.directory / "config.yaml").read_text())) == run.config

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"command": "dance"}, "command: 'dance' is none of train, finetune, attack"),
            ({"rule": None}, "rule: no rule of this version has the keys []"),
            (
                {"rule": {"name": "usf", "invented": 1}},
                "rule: no rule of this version has the keys ['invented', 'name']",
            ),
            ({"epochs": "many"}, "Value 'many' of type 'str' could not be converted to Integer"),
            ({"invented": 1}, "Key 'invented' not in 'TrainConfig'"),
        ],
    )
    def test_what_fits_no_schema_is_refused(self, change: dict[str, Any], said: str, tmp_path: Path) -> None:
        run = Run(replace(composed("train"), out=str(tmp_path)), [], None)
        run.directory.mkdir(parents=True)
        run.begin()
        saved = yaml.safe_load((run.directory / "config.yaml").read_text())
        with pytest.raises(RequestError) as caught:
            restore({**saved, **change})
        assert str(caught.value) == said

    @pytest.mark.parametrize(
        ("section", "key", "text"),
        [
            (None, "out", "${oc.env:SECRET}"),
            (None, "init_from", "a/${oc.env:SECRET}/b"),
            (None, "seed", "${oc.decode:${oc.env:SECRET}}"),
            ("dataset", "label", "${oc.env:SECRET}"),
            ("rule", "include", ["*", "${oc.env:SECRET}"]),
            ("optimizer", "lr_factors", {"${oc.env:SECRET}": 1.0}),
            ("dataset", "transforms", {"A": {"b": ["${oc.env:SECRET}"]}}),
            ("optimizer", "lr", "${epochs}"),
        ],
    )
    def test_nothing_is_looked_up_for_what_is_stored(
        self, monkeypatch: pytest.MonkeyPatch, section: str | None, key: str, text: Any
    ) -> None:
        monkeypatch.setenv("SECRET", "12345")
        saved = plain(asdict(composed("train")), names=True)
        (saved[section] if section else saved)[key] = text
        with pytest.raises(RequestError) as caught:
            restore(saved)
        named = ".".join(filter(None, [section, key]))
        assert str(caught.value) == (f"{named}: holds ${{…}}, a reference, which stored values must not")

    @pytest.mark.parametrize(
        "values",
        [None, [], "x", 3, {}, {"command": ["train"]}, {"command": "train", 3: 4}, {"command": "train"}],
    )
    def test_what_is_no_configuration_at_all_is_refused(self, values: Any) -> None:
        with pytest.raises(RequestError):
            restore(values)

    def test_endless_values_are_refused(self) -> None:
        saved = plain(asdict(composed("train")), names=True)
        ring: list[Any] = []
        ring.append(ring)
        tower: Any = "x"
        for _ in range(6):
            tower = [tower] * 10
        for value, said in ((ring, "nested more than 8"), (tower, "more than 10000 values")):
            with pytest.raises(RequestError, match=said):
                restore({**saved, "rule": {**saved["rule"], "include": value}})

    @pytest.mark.parametrize(
        ("group", "name"),
        [("optimizer", "adamw"), ("schedule", "multistep"), ("rule", "brsf"), ("rule", "../x")],
    )
    def test_a_section_that_is_not_what_its_name_says_is_refused(self, group: str, name: str) -> None:
        saved = plain(asdict(composed("train", "rule=kp")), names=True)
        saved[group]["name"] = name
        with pytest.raises(RequestError, match=f"^{group}.name: "):
            restore(saved)

    def test_an_older_section_with_fewer_keys_is_of_its_name(self) -> None:
        saved = plain(asdict(composed("train", "backbone=vit_tiny")), names=True)
        del saved["backbone"]["patch_size"], saved["backbone"]["input_size"]
        assert restore(saved) == composed("train", "backbone=vit_tiny")

    def test_a_model_of_timms_with_a_name_of_ours_stays_timms(self) -> None:
        config = composed("train", "backbone=timm", "backbone.name=resnet18")
        assert restore(plain(asdict(config), names=True)) == config


class TestRequest:
    @pytest.mark.parametrize(
        ("command", "overrides", "expected"),
        [
            ("train", [], set()),
            ("finetune", ["rule=usf", "rule.scale=unit", "seed=0"], {"rule", "rule.scale", "seed"}),
            ("attack", ["experiment=quickstart"], {"experiment"}),
            # its training settings are for the other commands: naming the experiment does not ask for them
            ("attack", EXPERIMENTS["cifar10_jpeg"], {"experiment", "dataset", "dataset.root"}),
        ],
    )  # fmt: skip
    def test_table(self, command: str, overrides: list[str], expected: set[str]) -> None:
        assert Request.of(composed(command, *overrides), overrides).explicit == expected

    def test_a_key_of_the_command_line_is_explicit_even_with_its_default_value(self) -> None:
        overrides = [*EXPERIMENTS["cifar10_jpeg"], "epochs=1"]
        config = composed("attack", *EXPERIMENTS["cifar10_jpeg"])
        assert Request.of(config, overrides).explicit == {"experiment", "dataset", "dataset.root", "epochs"}


class TestCells:
    def test_are_in_order_and_typed(self) -> None:
        found = cells("finetune", ["rule=usf,bp", "epochs=3"])
        assert [cell.overrides for cell in found] == [["rule=usf", "epochs=3"], ["rule=bp", "epochs=3"]]
        assert all(cell.request.explicit == {"rule", "epochs"} for cell in found)
        configs = [cell.request.config for cell in found]
        assert [(config.rule.name, config.epochs) for config in configs] == [("usf", 3), ("bp", 3)]

    @pytest.mark.parametrize(
        ("overrides", "said"),
        [
            (["epochs=1,0"], "epochs: 0 is out of range, expected >= 1 (in the cell epochs=0)"),
            (["seed=1", "rule=bp,usb"], "rule: there is no 'usb', did you mean 'usf'?"),
            (
                ["optimizer=sgd,adamw", "optimizer.momentum=0.5"],
                "optimizer.momentum: the chosen optimizer has",
            ),
            (["seed=range(1"], "seed=range(1: cannot be read as KEY=VALUE"),
        ],
    )
    def test_a_bad_cell_is_named(self, overrides: list[str], said: str) -> None:
        with pytest.raises(RequestError) as caught:
            cells("finetune", overrides)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


def test_known_keys() -> None:
    keys = known_keys()
    assert {"epochs", "experiment", "rule", "rule.redraw", "optimizer.betas", "dataset.image_size"} <= keys
    assert {"audit.strict", "audit.skip", "model.factory"} <= keys
    assert all(
        key.split(".")[0] in {*GROUPS, "experiment", *(f.name for f in fields(RunConfig))} for key in keys
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch: 3", "conf/experiment/broken.yaml: epoch: no such key, did you mean 'epochs'?"),
        ("epochs: many", "epochs: Value 'many' of type 'str' could not be converted to Integer"),
        (
            "optimizer: {name: adamw}",
            "optimizer.name: follows from optimizer=sgd; for another",
        ),
        ("rule: {name: ../../x}", "rule.name: follows from rule=bp; for another rule, known: bp, brsf"),
        (
            "dataset: {name: cifar100}",
            "dataset.name: follows from dataset=digits; for another",
        ),
    ],
)
def test_a_mistake_in_a_preset_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf" / "experiment" / "broken.yaml").write_text(f"# @package _global_\n{text}\n")
    monkeypatch.setattr(catalogue, "CONF", tmp_path / "conf")
    with pytest.raises(RequestError) as caught:
        compose("train", ["experiment=broken"])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
