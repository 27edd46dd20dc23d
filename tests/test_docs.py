"""Command lines in docs/ are read as sstune reads them, and the pages' links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from sstune.catalogue import CONF
from sstune.composition import cells
from sstune.schema import COMMANDS

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(DOCS.glob("*.md"))
ELSEWHERE = ("dataset.root", "init_from", "audit.surrogate")  # files of the reader's


def command_lines(page: Path) -> list[list[str]]:
    """Every ``sstune train|finetune|attack ...`` of a page, in a block or in a line of text, as words."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    names = "|".join(COMMANDS)
    found = re.findall(rf"^(?:    |\$ ).*?(sstune (?:{names}) .*)$", text, re.MULTILINE)
    found += re.findall(rf"`(?:torchrun .* )?(sstune (?:{names}) [^`…]*)`", text)
    return [shlex.split(line) for line in found]


def test_pages_show_command_lines() -> None:
    assert len([line for page in PAGES for line in command_lines(page)]) >= 8


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_command_lines_compose(page: Path, tmp_path: Path) -> None:
    for _, command, *words in command_lines(page):
        overrides = []
        for word in words:
            key = word.partition("=")[0]
            if not word.startswith(("-", "hydra")):
                overrides.append(f"{key}={tmp_path}" if key in ELSEWHERE else word)
        found = cells(command, overrides)
        assert len(found) == 1 or "-m" in words, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (DOCS / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_and_experiments_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:scripts|results|tests)/[\w./-]+\.\w+)`", text):
        assert (DOCS.parent / path).exists(), path
    for name in re.findall(r"experiment=(\w+)", text):
        assert (CONF / "experiment" / f"{name}.yaml").exists(), name
