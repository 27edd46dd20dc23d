"""What wrong command lines answer: the table in bad_requests.txt, and what the table cannot show."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sstune import commands
from sstune.commands import lineage
from sstune.mistakes import known_keys
from sstune.schema import COMMANDS, GROUPS, LONGEST_LINE

Ask = Callable[..., Any]


def table() -> dict[str, list[str]]:
    """Command line -> its answer: ``$ line`` and the lines below it, up to an empty one."""
    text = Path(__file__).with_name("bad_requests.txt").read_text(encoding="utf-8")
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("$ ")]
    return {line.removeprefix("$ "): answer for line, *answer in blocks}


TABLE = table()


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(*arguments: object) -> None:
        raise AssertionError("a wrong request has reached the work")

    monkeypatch.setattr(commands, "execute", reached)
    monkeypatch.setattr(lineage, "resolve_runs", reached)


@pytest.mark.parametrize("line", TABLE)
def test_is_answered_in_a_line_per_problem_and_touches_nothing(ask: Ask, tmp_path: Path, line: str) -> None:
    answer = ask(*shlex.split(line))
    assert answer.errors == [f"sstune: {problem}" for problem in TABLE[line]]
    assert answer.status == 2
    assert answer.out == ""
    assert all(len(error) <= LONGEST_LINE for error in answer.errors)
    words = shlex.split(line)
    for problem in TABLE[line]:  # says which key, or repeats a word
        named = problem.partition(":")[0] in {*known_keys(), "runs"} or "-m" in problem
        assert named or any(word.partition("=")[0] in problem for word in words)
    assert list(tmp_path.iterdir()) == []


def test_the_table_has_every_command_group_and_number_in_it() -> None:
    assert len(TABLE) >= 250
    assert {line.split()[0] for line in TABLE} >= {*COMMANDS, "report"}
    answered = {problem.partition(":")[0] for answer in TABLE.values() for problem in answer}
    assert {f"{group}.name" for group in GROUPS} | set(GROUPS) <= answered
    # what takes any text, or is wrong only in the company of files that the table has not
    anything = {"dataset", "dataset.cache", "dataset.download", "dataset.stream", "dataset.skip_corrupt"}
    anything |= {"dataset.train_split", "dataset.val_split", "attack.random_start", "attack.early_exit"}
    anything |= {"attack.eight_bit", "audit.strict", "optimizer.fused"}
    assert known_keys() - answered <= anything


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["out=a\nb"], r"out: 'a\nb' holds a control character"),
        (["out=a\x1b[31mb"], r"out: 'a\x1b[31mb' holds a control character"),
        (["out=a\udc80b"], r"out: 'a\udc80b' holds a control character"),
        (["out=a\u2028b"], r"out: 'a\u2028b' holds a control character"),
        (["epo\x1bchs=3"], r"epo\x1bchs=3: cannot be read as KEY=VALUE"),
        (["init_from=no\n/*"], r"init_from: no /* matches no finished run"),
        (["epochs=" + "9" * 5000], "epochs=999"),
        (["epochs=" + "9" * 400], "epochs: a number of some 400 digits is out of range"),
        (["seed=" + "[" * 500], "seed=[[["),
        (["out=" + "x" * 5000], "out: has 5000 characters, at most 4096 are allowed"),
        (["out=" + "/x" * 300 + "y" * 300], "out: has a component of more than 255 bytes"),
        (["out=" + "ü" * 200], "out: has a component of more than 255 bytes"),
        (["epoch" + "s" * 3000 + "=3"], "epochsss"),
    ],
)  # fmt: skip
def test_odd_characters_and_endless_texts_stay_one_line(
    ask: Ask, tmp_path: Path, arguments: list[str], problem: str | None
) -> None:
    answer = ask("train", "device=gpu", *arguments)
    assert answer.status == 2
    assert all(error.startswith("sstune: ") and error.isprintable() for error in answer.errors)
    assert all(len(error) <= LONGEST_LINE for error in answer.errors)
    assert problem is None or any(error.startswith(f"sstune: {problem}") for error in answer.errors)
    assert list(tmp_path.iterdir()) == []
