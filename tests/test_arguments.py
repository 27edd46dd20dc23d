"""Paths are taken as they are written, whatever characters are in them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from sstune.arguments import PATHS, quoted, read
from sstune.composition import cells, compose
from sstune.mistakes import known_keys
from sstune.runs import Run
from sstune.schema import RequestError
from sstune.validation import validate

Ask = Callable[..., Any]
ODD = [
    *(
        "a b",
        " a ",
        "a=b",
        "a,b",
        "für",
        "日本",
        "it's",
        'a"b',
        "a[1]",
        "[1]",
        "{a}",
        "a(b)",
        "choice(a)",
        "a;b",
    ),
    *("a#b", "a~b", "a\\b", "a\\", "1e3", "007", "true", "null", "-x", "+x", "=x", "'a'", "$HOME"),
]


def test_its_keys_are_there() -> None:
    assert set(PATHS) <= known_keys()


@given(st.text(min_size=1, max_size=12))
def test_what_is_quoted_reads_as_it_was(text: str) -> None:
    override = OverridesParser.create().parse_override(f"key={quoted(text)}")
    assert not override.is_sweep_override()
    assert override.value() == text.replace("${", r"\${")  # which OmegaConf reads as ${


@pytest.mark.parametrize("name", [name for name in ODD if name != "null"])
def test_a_place_that_is_there_needs_no_quotes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    _, overrides = read(["-m", f"init_from={name}", f"out={name}/runs", "seed=0,1"])
    for cell in cells("finetune", overrides):
        assert cell.request.config.init_from == name
        assert cell.request.explicit >= {"init_from", "out"}


@pytest.mark.parametrize(
    "name", ["a b", "a=b", "für/日本", "it's", "a;b", "1e3", "007", "true", "-x", "~/x", "a#b"]
)
def test_nor_does_one_that_is_yet_to_be_made(name: str) -> None:
    _, overrides = read([f"out={name}"])
    assert compose("train", overrides).out == name


@pytest.mark.parametrize(
    "text",
    ["null", "'a b'", '"a b"', "${seed}", "a\\ b", "choice(a,b)", "[a]", "{a:b}", "a,b", "null,a", "a,null"],
)
def test_what_is_in_hydras_grammar_stays_so(text: str) -> None:
    assert read([f"init_from={text}"]) == ([], [f"init_from={text}"])


def test_a_reference_on_a_command_line_is_looked_up_and_its_value_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PLACE", "a b")
    _, overrides = read(["out=${oc.env:PLACE}/runs", "seed=${epochs}"])
    config = compose("train", overrides)
    assert (config.out, config.seed) == ("a b/runs", config.epochs)


@pytest.mark.parametrize("folder", ["runs", "a b", "a=b", "a,b", "[1]", "it's", "für", "a\\"])
def test_a_pattern_finds_the_runs_below_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (*ODD, "unfinished"):
        (tmp_path / folder / name).mkdir(parents=True)
        (tmp_path / folder / name / "result.json").touch()
    (tmp_path / folder / "unfinished" / "result.json").unlink()
    _, overrides = read(["-m", f"init_from={tmp_path}/{folder}/*"])
    found = [cell.request.config.init_from for cell in cells("finetune", overrides)]
    assert found == sorted(f"{tmp_path}/{folder}/{name}" for name in ODD)


@pytest.mark.parametrize("text", ['"a b",c', "a,'b c'", "a,'b c',d"])
def test_nor_is_a_list_that_is_quoted_in_part_changed(text: str) -> None:
    assert read([f"init_from={text}"]) == ([], [f"init_from={text}"])


def test_patterns_and_paths_may_stand_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one/a", "one/b", "two/c", "other"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "result.json").touch()
    _, overrides = read(["-m", "init_from=one/*,other,t*/c"])
    found = [cell.request.config.init_from for cell in cells("finetune", overrides)]
    assert found == ["one/a", "one/b", "other", "two/c"]
    with pytest.raises(RequestError, match=r"init_from: one/\*,none/\* matches no finished run"):
        read(["-m", "init_from=one/*,none/*"])


def test_out_may_be_below_ones_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = compose("train", read(["out=~/new/runs"])[1])
    validate(config)
    assert Run(config, [], None).directory.parents[1] == tmp_path / "new" / "runs"
    (tmp_path / "new").touch()
    with pytest.raises(RequestError, match=f"out: {tmp_path}/new is a file, expected a directory"):
        validate(config)
    with pytest.raises(RequestError, match="out: ~nobody_here/x begins with the home of an unknown user"):
        validate(compose("train", read(["out=~nobody_here/x"])[1]))


def test_a_run_whose_name_is_a_reference_is_not_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "12345")
    for name in ("${oc.env:SECRET}", "12345"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").touch()
    (tmp_path / "12345" / "result.json").unlink()
    _, overrides = read([f"init_from={tmp_path}/*"])
    with pytest.raises(RequestError, match=r"init_from: .*holds \$\{, a reference to another value"):
        validate(compose("finetune", overrides))


def test_runs_in_odd_places_are_attacked(ask: Ask, tmp_path: Path, trained: Path) -> None:
    place = tmp_path / "Läufe, alte=[1]"
    for name in ("it's one", "the other"):
        shutil.copytree(trained, place / name)
    quick = ["attack=fgsm", "attack.eps=[8/255]", "attack.n=8", "threads=1", "device=cpu", "out=neue Läufe"]
    answer = ask("attack", "-m", f"init_from={place}/*", *quick, "seed=0")
    assert answer.status == 0, answer.err
    (run,) = (tmp_path / "neue Läufe" / "attack").glob("*/config.yaml")  # one network, one run
    stored = yaml.safe_load(run.read_text())
    assert stored["init_from"] in {str(place / "it's one"), str(place / "the other")}
    assert ask("attack", f"init_from={place}/the other", *quick, "seed=0").out.endswith(": done already\n")


def test_a_run_on_other_data_is_found_before_the_first_cell_runs(
    ask: Ask, tmp_path: Path, trained: Path
) -> None:
    for name in ("a", "b", "c"):
        shutil.copytree(trained, tmp_path / "nets" / name)
    for name, label in (("config.yaml", "label: {}"), ("result.json", '"label": "{}"')):
        stored = tmp_path / "nets" / "b" / name
        stored.write_text(stored.read_text().replace(label.format("digits"), label.format("others")))
    quick = ["attack=fgsm", "attack.eps=[8/255]", "attack.n=8", "threads=1", "device=cpu"]
    through = ["attack.gradient=[surrogate]", f"attack.surrogates=[{trained}]"]
    answer = ask("attack", "-m", "init_from=nets/*", *quick, *through)
    assert answer.status == 2
    assert answer.errors[0].startswith("sstune: attack.surrogates: ")
    assert "trained on digits, not on others" in answer.errors[0]
    colours = ["dataset.mean=[0.5,0.5,0.5]", "dataset.std=[1,1,1]"]
    answer = ask("attack", "-m", "init_from=nets/*", *quick, *colours)
    assert answer.status == 2
    assert answer.errors == [
        "sstune: dataset: digits has 3-channel images, the network of nets/a takes 1 (trained on digits)"
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["nets"]
