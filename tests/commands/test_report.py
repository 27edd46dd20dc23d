"""``sstune report`` prints the table, writes what it lists, and answers a wrong request in one line."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sstune
from sstune.commands.report import run
from sstune.packing import pack
from sstune.report.measurements import frame
from sstune.schema import RequestError

WRITTEN = ["accuracy.png", "accuracy.svg", "gap.csv", "rows.jsonl", "table.csv", "table.tex", "wide.csv"]


def row(seed: int) -> dict[str, Any]:
    config = {
        "backbone": {"name": "resnet20"},
        "dataset": {"name": "digits", "label": "digits"},
        "rule": {"name": "usf", "scale": "unit"},
        "seed": seed,
        "attack": {"name": "pgd", "n": 10, "eps": ["8/255"]},
    }
    counts = {(None, None, None): 9, ("pgd", "rule", "8/255"): 5 + seed, ("pgd", "exact", "8/255"): 0}
    measured = [
        {"split": "test", "attack": attack, "gradient": gradient, "eps": eps, "n": 10, "correct": correct}
        for (attack, gradient, eps), correct in counts.items()
    ]
    return {
        "schema_version": 1,
        "identity": str(seed) * 64,
        "command": "attack",
        "config": config,
        "lineage": [{"file": "net.th", "sha256": "0" * 64}],
        "n_classes": 10,
        "measurements": measured,
    }


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory holds ``runs`` with two finished runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "110")  # as wide as without a terminal, whatever runs the tests
    for seed in (0, 1):
        directory = tmp_path / "runs" / "attack" / f"s{seed}"
        directory.mkdir(parents=True)
        (directory / "result.json").write_text(json.dumps(row(seed)))
    return tmp_path / "runs"


def test_without_out_it_only_prints(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run([]) == 0
    printed = capsys.readouterr().out
    assert "55.0±7.1" in printed
    assert "n = 10; seeds = 1 (clean), 2 (pgd)" in printed
    assert "wrote" not in printed
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_writes_what_it_lists(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["runs/attack/s0", "runs/attack/s1", "--out", "results/first"]) == 0
    listed = capsys.readouterr().out.split("wrote\n")[1].split()
    assert sorted(listed) == [f"results/first/{name}" for name in WRITTEN]
    assert sorted(path.name for path in Path("results/first").iterdir()) == WRITTEN
    for name in WRITTEN:
        content = Path("results/first", name).read_bytes()
        assert content
        assert str(tmp_path).encode() not in content
    assert (
        "digits,usf,unit,,pgd,rule,,8/255,2,10,0.550000,0.070711,"
        in Path("results/first/table.csv").read_text()
    )


def test_outcomes_make_pairs_and_steps(runs: Path) -> None:
    """What an attack keeps of each sample is enough for McNemar's test and for the curve against steps."""
    path = runs / "attack" / "s0" / "result.json"
    written = json.loads(path.read_text())
    written["datasets"] = {"test": {"n": 100, "digest": "d" * 64, "attacked": "a" * 64}}
    for entry in written["measurements"]:
        entry["outcomes"] = pack([index < entry["correct"] for index in range(10)])
        entry["found"] = [[1, 9 - entry["correct"]]] if entry["attack"] else []
    path.write_text(json.dumps(written))
    run(["runs/attack/s0", "--out", "results/first"])
    more = {"paired.csv", "steps.png", "steps.svg"}
    assert {path.name for path in Path("results/first").iterdir()} == {*WRITTEN, *more}
    pair = "digits,0,,pgd,8/255,,usf unit,rule,usf unit,exact,10,0,5,0,5,50.000000,"
    assert pair in Path("results/first/paired.csv").read_text()


def test_the_frame_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(rows: Any) -> Any:
        calls.append(rows)
        return frame(rows)

    for module in [module for name, module in sys.modules.items() if name.startswith("sstune.report.")]:
        if hasattr(module, "frame"):
            monkeypatch.setattr(module, "frame", counted)
    assert run(["--out", "results/first"]) == 0
    assert len(calls) == 1


def test_a_report_of_its_own_rows_is_the_same_report() -> None:
    run(["--out", "results/first"])
    run(["results/first/rows.jsonl", "--out", "results/second"])
    run(["results/first/rows.jsonl", "runs", "--out", "results/second"])
    for name in WRITTEN:
        assert Path("results/first", name).read_bytes() == Path("results/second", name).read_bytes()


@pytest.mark.parametrize("argv", [["--uot", "x"], ["--out"], ["--ou", "x"], ["runs", "-x"], ["--help=3"]])
def test_a_wrong_command_line_is_a_wrong_request(argv: list[str]) -> None:
    with pytest.raises(RequestError, match=r"^report: .*; see sstune report --help$") as caught:
        run(argv)
    assert any(word.partition("=")[0] in str(caught.value) for word in argv)


def test_a_wrong_request_touches_nothing(tmp_path: Path) -> None:
    (tmp_path / "table").write_text("mine")
    with pytest.raises(RequestError, match="table is a file"):
        run(["--out", "table"])
    with pytest.raises(RequestError, match="runz: does not exist"):
        run(["runz", "--out", "results/first"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "table"]
    assert (tmp_path / "table").read_text() == "mine"


@pytest.mark.parametrize("out", ["mine", "mine/deep/er", "link", "fifo"])
def test_a_place_that_can_be_no_directory_is_a_wrong_request(out: str, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(RequestError, match=f"^--out {out}: {out[:4]} is a file, expected a directory$"):
        run(["--out", out])


def test_what_cannot_be_written_is_one_line_and_status_1(ask: Any, runs: Path) -> None:
    (runs.parent / "first" / "table.csv").mkdir(parents=True)
    answer = ask("report", "--out", "first")
    assert (answer.status, answer.errors) == (
        1,
        ["sstune: is a directory while writing first/table.csv; the earlier table.csv is intact"],
    )


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_is_one_line_and_status_1(
    ask: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, step: str
) -> None:
    """At every write in turn; what is there is whole, and the next report completes it."""
    real, written = getattr(os, step), 0

    def full(*arguments: Any) -> None:
        nonlocal written
        written += 1
        if written > allowed:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*arguments)

    monkeypatch.setattr(os, step, full)
    for allowed in range(len(WRITTEN)):
        written = 0
        answer = ask("report", "--out", f"out{allowed}")
        assert (answer.status, len(answer.errors)) == (1, 1)
        assert re.match(rf"sstune: no space left on /\S* while writing out{allowed}/\S+$", answer.err)
        assert len(os.listdir(f"out{allowed}")) == allowed
    allowed = 100
    assert ask("report", "--out", "out3").status == 0
    assert sorted(os.listdir("out3")) == WRITTEN


class TestUnreadable:
    """Not left out in silence: the tables would look complete."""

    @pytest.mark.parametrize("named", ["runs", "runs/attack/s0", "runs/attack/s0/result.json"])
    @pytest.mark.parametrize("kind", ["directory", "fifo", "dangling"])
    def test_a_result_that_is_no_file_is_named(self, ask: Any, runs: Path, named: str, kind: str) -> None:
        path = runs / "attack" / "s0" / "result.json"
        path.unlink()
        if kind == "directory":
            path.mkdir()
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            path.symlink_to("nowhere")
        answer = ask("report", named)
        assert answer.status in (1, 2)
        assert len(answer.errors) == 1
        assert answer.err.startswith("sstune: ")
        assert "runs/attack/s0/result.json" in answer.err or named in answer.err
        assert answer.out == ""

    def test_what_the_system_does_not_let_us_read_is_named(
        self, ask: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scandir, opened = os.scandir, Path.read_text

        def denied(path: Any) -> Any:
            if str(path).endswith("s1"):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return scandir(path)

        with monkeypatch.context() as patch:
            patch.setattr(os, "scandir", denied)
            answer = ask("report")
        assert (answer.status, answer.out) == (1, "")
        assert answer.errors == ["sstune: runs/attack/s1: cannot be read (Permission denied)"]

        def broken(path: Path, **arguments: Any) -> str:
            if path.name == "result.json":
                raise OSError(errno.EIO, "Input/output error", str(path))
            return opened(path, **arguments)

        monkeypatch.setattr(Path, "read_text", broken)
        answer = ask("report")
        assert (answer.status, answer.out) == (1, "")
        assert answer.errors == ["sstune: input/output error while reading runs/attack/s0/result.json"]


def test_names_that_look_like_mathematics_or_have_no_glyph_do_not_stop_a_report(runs: Path) -> None:
    for number, name in enumerate([r"$\frac$", "a_b%&#{}~^\\", "\x1b[31m\0", "caf\udce9", "a$b$"]):
        path = runs / "attack" / "s0" / "result.json"
        row = json.loads(path.read_text())
        row["config"]["dataset"]["label"] = row["config"]["backbone"]["name"] = name
        row["identity"] = f"{number:064}"
        (runs / "attack" / f"n{number}").mkdir()
        (runs / "attack" / f"n{number}" / "result.json").write_text(json.dumps(row))
    assert run(["--out", "results/first"]) == 0
    run(["results/first/rows.jsonl", "--out", "results/second"])
    for path in Path("results/first").iterdir():
        assert path.read_bytes() == Path("results/second", path.name).read_bytes()


def test_help_waits_for_no_heavy_import() -> None:
    program = (
        "import sys; from sstune.commands.report import run\n"
        "assert run(['--help']) == 0\n"
        "print({'torch', 'pandas', 'matplotlib'} & set(sys.modules))"
    )
    root = Path(sstune.__file__).parents[1]
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root
    )
    assert result.stdout.startswith("usage: sstune report")
    assert result.stdout.endswith("set()\n")
