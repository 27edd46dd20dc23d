"""The identity of each committed row, computed anew from its configuration and its ancestors."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import sstune
from sstune.composition import compose, restore
from sstune.identity import identity, plain, semantic
from sstune.runs import ancestor_id
from sstune.schema import BackboneConfig, RunConfig

ROWS = {
    f"{path.parent.name}-{number}": json.loads(line)
    for path in sorted((Path(sstune.__file__).parents[1] / "results").glob("*/rows.jsonl"))
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines())
}
# sha256 of the archives that the committed rows were made from; the digits have no fingerprint.
ARCHIVES = {
    "cifar10-jpeg": "efb3c20c75312aedc081dacfedb0d7693a58b86fc95ba2b011eae986b95fae5d",
    "mnist": "7d662a212497d9fe859fc57b7f387abd0196d70af9fdfffe85188161fa5d65e3",
    "tiny-imagenet-32": "432b92633c830747c394dae36182785b393dedb1055b65ae23055827c2a79a16",
}


@cache
def defaults(command: str) -> dict[str, Any]:
    return dict(plain(asdict(compose(command)), names=True))


def rebuilt(stored: dict[str, Any], parent: dict[str, Any]) -> RunConfig:
    """The typed configuration of a row: what the row leaves out has its default."""
    values = defaults(stored["command"]) | copy.deepcopy(stored)
    if values["dataset"]["name"] == "folder":
        values["dataset"]["root"] = "."
    imported = parent.get("file") == stored["backbone"]["name"]
    if imported:
        values["backbone"] = defaults(stored["command"])["backbone"]
    config = restore(values)
    if imported:
        config.backbone = BackboneConfig(**stored["backbone"])
    return config


def surrogates(row: dict[str, Any]) -> list[str]:
    """Identities of the networks that an audit transferred from; a row holds the first 8 digits of each."""
    sources = sorted({found.get("source") for found in row["measurements"]} - {None, ""})
    found = [
        {each["identity"] for each in ROWS.values() if source[-8:] == each["identity"][:8]}
        for source in sources
    ]
    assert all(len(each) == 1 for each in found), sources
    return [name for each in found for name in each]


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_identity_is_that_of_the_row(row: dict[str, Any]) -> None:
    *_, parent = [{}, *row["lineage"]]
    config = rebuilt(row["config"], parent)
    assert json.loads(json.dumps(semantic(config))) == row["config"]
    data = ARCHIVES.get(config.dataset.label)
    assert identity(config, ancestor_id(parent), data, surrogates(row)) == row["identity"]
    for number, ancestor in enumerate(row["lineage"]):
        if "config" in ancestor:
            *_, before = [{}, *row["lineage"][:number]]
            config = rebuilt(ancestor["config"], before)
            data = ARCHIVES.get(config.dataset.label)
            assert identity(config, ancestor_id(before), data) == ancestor["identity"]


def test_there_are_rows_of_every_command() -> None:
    assert {row["command"] for row in ROWS.values()} == {"train", "finetune", "attack"}
    assert any(surrogates(row) for row in ROWS.values())
