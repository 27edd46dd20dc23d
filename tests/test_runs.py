from __future__ import annotations

import copy
import dataclasses
import errno
import importlib.metadata
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml

import sstune
from sstune import runs
from sstune.composition import compose
from sstune.runs import SCHEMA_VERSION, Locked, Run, atomic_write, identity, read_result, write_json
from sstune.schema import COMMANDS, GROUPS, Redraw, RequestError, RunConfig, Scale, Start, TrainedConfig

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
    "attack.batch_size",
    "alignment",  # measures, and changes nothing
    "workers",
    "compile",
    "deterministic",
    "optimizer.fused",
}
# what has no effect in the company of the default values
INERT = {"optimizer.weight_decay_gamma", "dataset.subset_seed"}
INERT_OF_A_START = {*INERT, "rule.scale"}
TRAINING = {
    "optimizer", "schedule", "epochs", "batch_size", "accumulate", "clip_norm", "ema", "select", "patience",
    "precision",
}  # fmt: skip
UNUSED = {"train": {"attack"}, "finetune": {"attack"}, "attack": TRAINING}


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
    sections = [("", config), *((group, getattr(config, group)) for group in GROUPS)]
    for section, owner in sections:
        hints = get_type_hints(type(owner))
        for item in dataclasses.fields(owner):
            if item.name not in {*GROUPS, "command"}:
                changed = copy.deepcopy(config)
                target = getattr(changed, section) if section else changed
                setattr(target, item.name, another(getattr(target, item.name), hints[item.name]))
                yield f"{section}.{item.name}".lstrip("."), changed


def every_option() -> list[dict[str, str]]:
    """Choices that between them have every option of every group."""
    longest = max(len(options) for options in GROUPS.values())
    return [{group: list(o)[i if i < len(o) else 0] for group, o in GROUPS.items()} for i in range(longest)]


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

    def test_keys_that_came_later_left_older_identities_as_they_were(self) -> None:
        """Rows that are committed keep the identities by which a rerun finds them."""
        found = {}
        for line in (ROOT / "results" / "quickstart" / "rows.jsonl").read_text().splitlines():
            row = json.loads(line)
            if row["command"] == "finetune":
                chosen = [f"rule={row['config']['rule']['name']}", "experiment=quickstart"]
                parent = row["lineage"][-1]["identity"]
                found[row["identity"]] = identity(compose("finetune", chosen), parent, None)
        assert len(found) == 4
        assert all(before == now for before, now in found.items())

    def test_the_order_of_fields_does_not_count(
        self, complete: Complete, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = complete()
        before = identity(config, None, None)
        values = runs.semantic(config)
        reverse = {
            key: dict(reversed(value.items())) if isinstance(value, dict) else value
            for key, value in reversed(values.items())
        }
        assert list(reverse) != list(values)
        monkeypatch.setattr(runs, "semantic", lambda config: reverse)
        assert identity(config, None, None) == before

    def test_is_the_same_in_every_process(self) -> None:
        program = "from sstune.composition import compose; from sstune.runs import identity; "
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


class TestDirectory:
    @pytest.mark.parametrize(
        ("command", "rule", "label"),
        [
            ("train", "bp", "runs/train/resnet20-d-bp-s3-"),
            ("finetune", "usf", "runs/finetune/resnet20-d-usf-weight_rms-s3-"),
            ("attack", "usf", "runs/attack/fgsm-resnet20-d-usf-weight_rms-s3-"),
        ],
    )
    def test_label(self, complete: Complete, command: str, rule: str, label: str) -> None:
        config = complete(command, seed=3)
        config.rule.name = rule
        run = Run(config, [], None)
        assert str(run.directory) == label + run.identity[:12]

    def test_the_last_ancestor_is_the_parent(self, complete: Complete) -> None:
        file, ancestor = {"file": "a.pt", "sha256": "f" * 64}, {"identity": "a" * 64}
        seen = [
            Run(complete(), lineage, None).identity for lineage in ([], [file], [file, ancestor], [ancestor])
        ]
        assert seen[2] == seen[3] == identity(complete(), "a" * 64, None)
        assert seen[1] == identity(complete(), "f" * 64, None)
        assert len(set(seen)) == 3


class TestAtomicWrite:
    def test_replaces_the_file_and_follows_the_umask(self, tmp_path: Path) -> None:
        path = tmp_path / "a.json"
        before = os.umask(0o027)
        try:
            write_json(path, {"b": 1, "a": 2})
            write_json(path, {"b": 3, "a": 4})
        finally:
            os.umask(before)
        assert path.read_text() == '{\n "a": 4,\n "b": 3\n}\n'
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert os.listdir(tmp_path) == ["a.json"]

    @pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
    @pytest.mark.parametrize("there", [True, False])
    def test_a_failure_leaves_things_as_they_were(
        self, tmp_path: Path, error: BaseException, there: bool
    ) -> None:
        path = tmp_path / "a.json"
        if there:
            path.write_text("old")

        def fail() -> None:
            with atomic_write(path) as temporary:
                temporary.write_text("half")
                raise error

        with pytest.raises(type(error)):
            fail()
        assert os.listdir(tmp_path) == (["a.json"] if there else [])
        assert not there or path.read_text() == "old"

    def test_the_temporary_file_has_the_suffix_and_lies_beside(self, tmp_path: Path) -> None:
        with atomic_write(tmp_path / "a.npz") as temporary:
            assert temporary.parent == tmp_path
            assert temporary.suffix == ".npz"

    def test_a_real_limit_on_the_file_size_leaves_the_old_file(self, tmp_path: Path) -> None:
        program = (
            "import resource, sys; from pathlib import Path; from sstune.runs import write_json\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
            "path = Path(sys.argv[1]); write_json(path, 'small')\n"
            "try: write_json(path, 'large' * 4096)\n"
            "except OSError as error: print(error.errno)"
        )
        path = tmp_path / "a.json"
        printed = subprocess.check_output(
            [sys.executable, "-c", program, str(path)], env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True
        )
        assert int(printed) == errno.EFBIG
        assert json.loads(path.read_text()) == "small"
        assert os.listdir(tmp_path) == ["a.json"]


class TestLock:
    @pytest.fixture
    def run(self, complete: Complete, tmp_path: Path) -> Run:
        return Run(complete(out=str(tmp_path)), [], None)

    @pytest.fixture
    def holder(self, run: Run) -> Iterator[subprocess.Popen[str]]:
        """Another process that holds the lock until it is killed."""
        program = (
            "import sys, time; from pathlib import Path; from sstune.runs import Run\n"
            "run = Run.__new__(Run); run.directory = Path(sys.argv[1])\n"
            "with run.lock(): print('held', flush=True); time.sleep(60)"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(run.directory)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()
        process.communicate()

    def test_another_process_is_named_and_its_death_frees_the_lock(
        self, run: Run, holder: subprocess.Popen[str]
    ) -> None:
        with pytest.raises(Locked) as caught, run.lock():
            pass
        host = os.uname().nodename
        assert str(caught.value) == f"{run.directory} is being run by process {holder.pid} on {host}"
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with run.lock():
            assert f"process {os.getpid()} " in (run.directory / "lock").read_text()

    def test_waiting_ends_when_the_other_process_does(
        self, run: Run, holder: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        began = time.monotonic()
        killer = threading.Timer(0.3, holder.kill)
        killer.start()
        with run.lock(wait=True):
            waited = time.monotonic() - began
            assert f"process {os.getpid()} " in (run.directory / "lock").read_text()
            with pytest.raises(Locked), run.lock():
                pass
        assert 0.29 < waited < 30
        said = f"{run.directory} is being run by process {holder.pid} on {os.uname().nodename}"
        assert capsys.readouterr().out == f"{said}: waiting for it\n"

    def test_what_nobody_holds_is_not_waited_for(self, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        with run.lock(wait=True):
            pass
        assert capsys.readouterr().out == ""

    def test_is_freed_at_the_end_and_by_an_error(self, run: Run) -> None:
        with pytest.raises(KeyError), run.lock():
            raise KeyError
        with run.lock(), pytest.raises(Locked), run.lock():
            pass
        assert (run.directory / "lock").read_text() == ""


class TestRun:
    @pytest.fixture
    def run(self, complete: Complete, tmp_path: Path) -> Run:
        run = Run(complete("train", out=str(tmp_path)), [], None)
        run.directory.mkdir(parents=True)
        return run

    def test_an_unfinished_run_has_no_result(self, run: Run) -> None:
        run.begin()
        assert run.result() is None

    def test_begin_writes_the_configuration_and_forgets_the_failure(self, run: Run, tmp_path: Path) -> None:
        (run.directory / "failure.json").write_text("{}")
        run.config = dataclasses.replace(run.config, init_from=os.path.relpath(tmp_path / "a.pt"))
        run.begin()
        saved = yaml.safe_load((run.directory / "config.yaml").read_text())
        assert saved["init_from"] == str(tmp_path / "a.pt")
        assert saved["rule"] == {"name": "usf", "scale": "weight_rms", "include": ["*"], "exclude": []}
        assert list(saved) == [item.name for item in dataclasses.fields(RunConfig)]
        assert not (run.directory / "failure.json").exists()

    def test_force_puts_the_earlier_result_aside(self, run: Run) -> None:
        run.begin()
        row = run.finish(measurements=[])
        state = {"checkpoint.pt": "state", "outcomes.npz": "outcomes"}
        for name, text in state.items():
            (run.directory / name).write_text(text)
        run.begin()
        assert run.result() == row
        run.config = dataclasses.replace(run.config, force=True)
        run.begin()
        assert run.result() is None
        assert json.loads((run.directory / "previous.result.json").read_text()) == row
        for name, text in state.items():
            assert not (run.directory / name).exists()
            assert (run.directory / f"previous.{name}").read_text() == text

    def test_the_row_is_written_last_and_the_state_removed(self, run: Run) -> None:
        (run.directory / "checkpoint.pt").write_text("state")
        row = run.finish(measurements=[1], seconds=1.5)
        assert run.result() == row
        assert not (run.directory / "checkpoint.pt").exists()
        assert row["schema_version"] == SCHEMA_VERSION
        assert row["identity"] == run.identity
        assert (row["command"], row["lineage"], row["measurements"], row["seconds"]) == (
            "train",
            [],
            [1],
            1.5,
        )
        assert row["config"] == runs.semantic(run.config)
        assert row["versions"]["sstune"] == sstune.__version__
        assert row["versions"]["torch"] == importlib.metadata.version("torch")
        assert set(row["git"]) == {"commit", "dirty"}

    def test_an_ancestor_is_what_descendants_list(self, run: Run) -> None:
        row = run.finish()
        assert run.ancestor() == {key: row[key] for key in ("command", "identity", "config")}

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("{", "not JSON"),
            ("[]", "not a row of schema version 1"),
            ("{}", "not a row of schema version 1"),
            ('{"schema_version": 2}', "not a row of schema version 1"),
        ],
    )
    def test_what_is_no_row_is_refused(self, tmp_path: Path, content: str, said: str) -> None:
        (tmp_path / "result.json").write_text(content)
        with pytest.raises(RequestError, match=said) as caught:
            read_result(tmp_path)
        assert str(tmp_path / "result.json") in str(caught.value)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_row_names_the_commit_only_of_a_checkout_that_has_this_package(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "sstune", checkout / "sstune", ignore=shutil.ignore_patterns("__pycache__"))
    program = "import json; from sstune import runs; print(json.dumps(runs._git()))"

    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment.update(PYTHONPATH=str(checkout), PYTHONDONTWRITEBYTECODE="1")

    def answer(*command: str) -> str:
        return subprocess.check_output(command, cwd=checkout, env=environment, text=True).strip()

    def git(*arguments: str) -> str:
        person = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        return answer("git", *person, *arguments)

    def found() -> Any:
        return json.loads(answer(sys.executable, "-c", program))

    git("init", "--quiet")
    assert found() == {"commit": None, "dirty": None}
    git("add", ".")
    git("commit", "--quiet", "--message", "all")
    commit = git("rev-parse", "HEAD")
    assert found() == {"commit": commit, "dirty": False}
    (checkout / "sstune" / "runs.py").open("a").write("# changed\n")
    assert found() == {"commit": commit, "dirty": True}


def test_identity_is_computed_without_torch() -> None:
    program = "import sys; from sstune.composition import compose; from sstune.runs import Run\n"
    program += "Run(compose('train'), [], None); print('torch' in sys.modules)"
    printed = subprocess.check_output(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True
    )
    assert printed == "False\n"


def test_redraw_counts(complete: Complete) -> None:
    config = complete(rule="brsf")
    other = dataclasses.replace(config, rule=dataclasses.replace(config.rule, redraw=Redraw.forward))  # type: ignore[call-arg]
    assert identity(config, None, None) != identity(other, None, None)
