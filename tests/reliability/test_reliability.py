"""The short part of ``make faults``, what can make it fail, and the figures in docs/reliability.md."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from children import COUNT, FULL, KILL, KILL_HALFWAY, SIGNAL, SOURCE, compiler
from contents import contents, differences
from suite import page_table

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "results" / "reliability" / "faults.csv"
PAGE = ROOT / "docs" / "reliability.md"
FIGURES = ("tried", "lost", "different", "blocked", "unclear")

needs_compiler = pytest.mark.skipif(compiler() is None, reason="needs gcc")


@needs_compiler
def test_short_part(tmp_path: Path) -> None:
    """A kill, a full disk, damaged files and two sweepers for every command; all of it: ``make faults``."""
    table = tmp_path / "faults.csv"
    line = [
        sys.executable,
        str(SOURCE.with_name("suite.py")),
        "--short",
        "--processes",
        "1",
        "--out",
        str(table),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(line, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = list(csv.DictReader(table.read_text().splitlines()))
    commands = {"train", "finetune", "attack", "audit", "sweep", "report"}
    assert commands <= {each["command"] for each in lines}
    assert {each[name] for each in lines for name in FIGURES[1:]} == {"0"}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("library") / "file_faults.so"
    subprocess.run([str(compiler()), "-shared", "-fPIC", "-o", path, SOURCE, "-ldl"], check=True)
    return path


@needs_compiler
class TestFileFaults:
    """The library does to a process what it is told to."""

    PROGRAM = (
        "import os, signal; signal.signal(signal.SIGTERM, lambda *_: print('told', flush=True))\n"
        "with open('a', 'wb', buffering=0) as file:\n"
        "    for _ in range(3): file.write(b'12345678')\n"
        "os.replace('a', 'b')"
    )

    @pytest.mark.parametrize(
        ("number", "action", "status", "left", "said"),
        [
            (0, COUNT, 0, {"b": 24}, ""),
            (1, KILL, -signal.SIGKILL, {}, ""),
            (3, KILL, -signal.SIGKILL, {"a": 8}, ""),
            (3, KILL_HALFWAY, -signal.SIGKILL, {"a": 12}, ""),
            (5, KILL, -signal.SIGKILL, {"a": 24}, ""),
            (3, FULL, 1, {"a": 12}, "No space left on device"),
            (1, FULL, 1, {}, "No space left on device"),
            (4, SIGNAL + signal.SIGTERM, 0, {"b": 24}, "told"),
        ],
    )
    def test_fault(
        self,
        library: Path,
        tmp_path: Path,
        number: int,
        action: int,
        status: int,
        left: dict[str, int],
        said: str,
    ) -> None:
        folder, log = tmp_path / "folder", tmp_path / "log"
        folder.mkdir()
        told = f"{folder} {log} {number} {action}"
        environment = {**os.environ, "LD_PRELOAD": str(library), "FILE_FAULTS": told}
        ended = subprocess.run(
            [sys.executable, "-c", self.PROGRAM], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert ended.returncode == status
        assert said in ended.stdout + ended.stderr
        assert {path.name: path.stat().st_size for path in folder.iterdir()} == left
        noted = [line.split(" ", 2)[2] for line in log.read_text().splitlines()]
        if status == 0:
            place = str(folder)
            assert noted == [
                f"open {place}/a", *[f"write {place}/a"] * 3, f"rename {place}/b", f"done {place}/b",
            ]  # fmt: skip


class TestContents:
    """Nothing but times and the commit may differ unnoticed."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        torch.save({"weight": torch.zeros(3), "seconds": 1.0}, tmp_path / "model.pt")
        (tmp_path / "result.json").write_text('{"n": 1, "seconds": 2, "git": {"commit": "a"}}')
        (tmp_path / "history.csv").write_text("loss,seconds\n0.5,1\n")
        (tmp_path / "config.yaml").write_text(f"out: {tmp_path}\n")
        return tmp_path

    def test_times_commit_and_place_do_not_count(self, folder: Path, tmp_path: Path) -> None:
        before = contents(folder)
        torch.save({"weight": torch.zeros(3), "seconds": 9.0}, folder / "model.pt")
        (folder / "result.json").write_text('{"n": 1, "seconds": 3, "git": {"commit": "b"}}')
        (folder / "history.csv").write_text("loss,seconds\n0.5,7\n")
        moved = folder.rename(tmp_path.with_name("moved"))
        (moved / "config.yaml").write_text(f"out: {moved}\n")
        assert differences(contents(moved), before) == []

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("result.json", '{"n": 2, "seconds": 2, "git": {"commit": "a"}}'),
            ("result.json", '{"n": 1,'),
            ("history.csv", "loss,seconds\n0.6,1\n"),
            ("config.yaml", "out: elsewhere\n"),
        ],
    )
    def test_anything_else_does(self, folder: Path, name: str, text: str) -> None:
        before = contents(folder)
        (folder / name).write_text(text)
        (folder / ".model.pt.x.tmp").touch()
        assert differences(contents(folder), before) == ["leftover .model.pt.x.tmp", f"another {name}"]

    def test_so_does_one_bit_of_a_weight(self, folder: Path) -> None:
        before = contents(folder)
        torch.save({"weight": torch.tensor([0.0, 0.0, -0.0]), "seconds": 1.0}, folder / "model.pt")
        assert differences(contents(folder), before) == ["another model.pt"]


@pytest.fixture(scope="module")
def lines() -> list[dict[str, str]]:
    return list(csv.DictReader(TABLE.read_text().splitlines()))


class TestPage:
    """docs/reliability.md shows what the last ``make faults`` found."""

    def test_its_table_is_that_of_the_file(self, lines: list[dict[str, str]]) -> None:
        (table,) = re.findall(r"(?:^\|.*\n)+", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
        assert table == page_table(lines)

    def test_it_was_whole_and_found_nothing_amiss(self, lines: list[dict[str, str]]) -> None:
        kills = sum(int(each["tried"]) for each in lines if each["fault"].startswith("killed"))
        assert kills >= 200
        assert {each["command"] for each in lines} >= {
            "train", "finetune", "attack", "audit", "sweep", "sweep joblib", "report",
        }  # fmt: skip
        assert {each[name] for each in lines for name in FIGURES[1:]} == {"0"}
